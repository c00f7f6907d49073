"""Limits of each mechanism."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms import FedAvg, FedSpeed, Scaffold
from fedsim.compress import TopK
from fedsim.engine.local_work import LocalWork
from fedsim.feedback import EControlUplink, EF14Uplink, EF21Uplink
from fedsim.feedback.compressed import Compressed
from tests.algorithms.quadratics import everybody, federation, heterogeneous, iterates, some

pytestmark = pytest.mark.slow

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
    assert distance(algorithm, EF14Uplink(HALF), cohorts, steps=2) < 1e-5
    assert distance(algorithm, EF21Uplink(HALF), cohorts, steps=2) > 0.05


def test_econtrol_takes_errors_back_where_everybody_takes_part() -> None:
    algorithm = Scaffold(lr=0.3, server_lr=0.7)
    assert distance(algorithm, EControlUplink(HALF), everybody(4, 120), steps=2) < 1e-5
    assert distance(algorithm, EControlUplink(HALF), some(4, 2, 120), steps=2) > 0.05


@pytest.mark.parametrize("cohorts", [everybody(4, 120), some(4, 2, 120)], ids=["everybody", "some"])
def test_gradients_of_unequal_clients_need_ef21(cohorts: list[list[int]]) -> None:
    """EF14 has a floor. EF21 has none, even where clients are away, as their last gradients still count."""
    algorithm = FedAvg(lr=0.5, server_lr=0.7)
    assert distance(algorithm, EF14Uplink(HALF), cohorts) > 0.01
    assert distance(algorithm, EF21Uplink(HALF), cohorts) < 1e-5
    assert distance(algorithm, EControlUplink(HALF), cohorts) < 1e-5
