"""Links against the compressed algorithms of the same name, and where each mechanism leads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import algorithms
from algorithms import FedAvg, FedSpeed, Scaffold
from fedsim.compress import RandK, Scaled, TopK
from fedsim.engine.local_work import LocalWork
from fedsim.feedback import EF14, EF21, EControl
from fedsim.feedback.compressed import Compressed
from tests.algorithms.quadratics import everybody, federation, heterogeneous, iterates, some

WHOLE = LocalWork(0, steps=1)
F = heterogeneous(n=6, d=8)
X0 = np.linspace(-1, 1, F.d)


@pytest.mark.parametrize("by", [TopK(k=2), RandK(k=3, scaled=False), Scaled(RandK(k=3))], ids=str)
@pytest.mark.parametrize("cohorts", [everybody(6, 12), some(6, 3, 12)], ids=["everybody", "some"])
def test_fedavg_with_one_step_and_a_link_is_the_algorithm(cohorts: list[list[int]], by: Any) -> None:
    """With the same draws. EF21's server moves before it hears, so it is a round behind when it starts from zero."""
    pairs = (
        (EF14(by), algorithms.EF14(0.4, by), 0.4, 1.0, 0),
        (EF21(by), algorithms.EF21(0.4, by, start="zero"), 1.0, 0.4, 1),
        (EControl(by, 0.1), algorithms.EControl(0.4, by, eta=0.1, start="zero"), 1.0, 0.4, 0),
    )
    weights = np.array([1.0, 2, 3, 1, 1, 2])
    for uplink, algorithm, lr, server_lr, lag in pairs:
        link, fed = (federation(F, WHOLE, weights=weights) for _ in range(2))
        found = iterates(Compressed(FedAvg(lr, server_lr), uplink), link, X0, cohorts)
        expected = iterates(algorithm, fed, X0, cohorts)
        np.testing.assert_allclose(found[: len(found) - lag], expected[lag:], rtol=0, atol=1e-14, err_msg=str(uplink))


SMALL = heterogeneous(n=4, d=4)
BEST = SMALL.minimiser()
HALF = TopK(fraction=0.5)


def distance(algorithm: Any, uplink: Any, cohorts: list[list[int]], steps: int = 1) -> float:
    """To the minimiser in the end."""
    fed = federation(SMALL, LocalWork(0, steps=steps))
    return float(np.linalg.norm(iterates(Compressed(algorithm, uplink), fed, np.zeros(4), cohorts)[-1] - BEST))


@pytest.mark.parametrize("cohorts", [everybody(4, 120), some(4, 2, 120)], ids=["everybody", "some"])
@pytest.mark.parametrize("algorithm", [Scaffold(lr=0.3, server_lr=0.7), FedSpeed(lr=0.3, lam=2.0, rho=0.0)], ids=str)
def test_servers_that_add_up_messages_need_ef14(algorithm: Any, cohorts: list[list[int]]) -> None:
    """Exact methods stay exact: nothing that their server follows is lost. EF21's errors are never taken back."""
    assert distance(algorithm, EF14(HALF), cohorts, steps=2) < 1e-5
    assert distance(algorithm, EF21(HALF), cohorts, steps=2) > 0.05


def test_econtrol_takes_errors_back_where_everybody_takes_part() -> None:
    algorithm = Scaffold(lr=0.3, server_lr=0.7)
    assert distance(algorithm, EControl(HALF), everybody(4, 120), steps=2) < 1e-5
    assert distance(algorithm, EControl(HALF), some(4, 2, 120), steps=2) > 0.05


@pytest.mark.parametrize("cohorts", [everybody(4, 120), some(4, 2, 120)], ids=["everybody", "some"])
def test_gradients_of_unequal_clients_need_ef21(cohorts: list[list[int]]) -> None:
    """EF14 has a floor. EF21 has none, even where clients are away, as their last gradients still count."""
    algorithm = FedAvg(lr=0.5, server_lr=0.7)
    assert distance(algorithm, EF14(HALF), cohorts) > 0.01
    assert distance(algorithm, EF21(HALF), cohorts) < 1e-5
    assert distance(algorithm, EControl(HALF), cohorts) < 1e-5
