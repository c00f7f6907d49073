"""Ditto, pFedMe and Per-FedAvg against their papers, at the ends of their settings, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from algorithms import Ditto, FedAvg, PerFedAvg, PFedMe
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.messages.wire import nbytes
from tests.algorithms import personal_papers as papers
from tests.algorithms.quadratics import X0, F, batches_of, everybody, federation, iterates, some, states

WORKS = {"whole shard": LocalWork(0, steps=6), "epochs": LocalWork(8, epochs=2), "odd": LocalWork(12, steps=5)}
COHORTS = {"everybody": everybody(F.n, 4), "2 of 10": some(F.n, 2, 6)}
every_case = pytest.mark.parametrize(
    ("work", "cohorts", "backend"),
    [*((work, cohorts, Loop()) for work in WORKS for cohorts in COHORTS), ("epochs", "2 of 10", Blocks(4))],
)


def decayed(t: int) -> float:
    return 0.8**t


def close(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=0, atol=tolerance)
    assert np.abs(np.array(ours)[-1] - X0).max() > 1e-3, "nothing moved"


def personal(found: list[Any]) -> list[list[np.ndarray]]:
    return [[state.personal[i].numpy() for i in range(F.n)] for state in found]


@every_case
def test_ditto_is_the_paper_s(work: str, cohorts: str, backend: Any) -> None:
    fed, S = federation(F, WORKS[work], backend, decayed), COHORTS[cohorts]
    found = states(Ditto(lr=0.2, personal_lr=0.1, lam=0.7), fed, X0, S)[1:]
    x, v = papers.ditto(F, X0, S, batches_of(fed), lambda t: 0.2 * decayed(t), lambda t: 0.1 * decayed(t), 0.7)
    close([state.x.numpy() for state in found], x)
    close(personal(found), v)
    close(iterates(FedAvg(lr=0.2), fed, X0, S), x)


@every_case
def test_pfedme_is_the_paper_s(work: str, cohorts: str, backend: Any) -> None:
    fed, S = federation(F, WORKS[work], backend, decayed), COHORTS[cohorts]
    algorithm = PFedMe(lr=0.04, personal_lr=0.06, lam=8.0, inner_steps=3, server_lr=1.5)
    found = states(algorithm, fed, X0, S)[1:]
    rates = (lambda t: 0.04 * decayed(t)), (lambda t: 0.06 * decayed(t))
    x, theta = papers.pfedme(F, X0, S, batches_of(fed), *rates, lam=8.0, K=3, beta=1.5)
    close([state.x.numpy() for state in found], x)
    close(personal(found), theta)


@every_case
def test_per_fedavg_is_the_paper_s(work: str, cohorts: str, backend: Any) -> None:
    fed, S = federation(F, WORKS[work], backend, decayed), COHORTS[cohorts]
    theirs = papers.per_fedavg(F, X0, S, batches_of(fed), lambda t: 0.2 * decayed(t), lambda t: 0.3 * decayed(t))
    close(iterates(PerFedAvg(lr=0.2, alpha=0.3), fed, X0, S), theirs)


def test_ditto_without_a_pull_is_training_alone() -> None:
    """Two rounds of K steps on whole shards are 2 K steps of gradient descent from the start."""
    found = states(Ditto(lr=0.2, lam=0.0), federation(F, WORKS["whole shard"]), X0, COHORTS["everybody"][:2])
    for i in range(F.n):
        v = X0
        for _ in range(12):
            v = v - 0.2 * F.grad(i, v)
        np.testing.assert_allclose(found[-1].personal[i].numpy(), v, rtol=0, atol=1e-12)


def test_ditto_with_a_strong_pull_is_the_global_model() -> None:
    """The distance to it falls as 1 / lambda."""
    gaps = []
    for lam in (1e2, 1e4):
        fed = federation(F, LocalWork(0, steps=50))
        before, after = states(Ditto(lr=0.1, personal_lr=1 / lam, lam=lam), fed, X0, COHORTS["everybody"][:1])
        gaps.append(max(float((after.personal[i] - before.x).norm()) for i in range(F.n)))
    assert gaps[1] < 1e-3 and 50 < gaps[0] / gaps[1] < 200


def test_pfedme_with_many_inner_steps_solves_the_proximal_problem() -> None:
    """theta = argmin f_i + (lam / 2) ||theta - w||^2 at the last w, which one minibatch step left at its start."""
    fed, lam = federation(F, LocalWork(0, steps=1)), 5.0
    after = states(PFedMe(lr=0.1, personal_lr=0.1, lam=lam, inner_steps=400), fed, X0, COHORTS["everybody"][:1])[-1]
    thetas = [
        np.linalg.solve(F.H(i) + lam * np.eye(F.d), F.H(i) @ F.own_minimiser(i) + lam * X0) for i in range(F.n)
    ]
    close(personal([after])[0], thetas, 1e-11)
    close([after.x.numpy()], [X0 - 0.1 * lam * (X0 - np.mean(thetas, 0))], 1e-11)


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.0])
def test_pfedme_takes_the_authors_settings(beta: float) -> None:
    """Those of their runs on MNIST, https://github.com/CharlieDinh/pFedMe: eta_p lambda is 1.5, beta up to 4."""
    fed, S = federation(F, WORKS["epochs"]), COHORTS["2 of 10"]
    ours = iterates(PFedMe(lr=0.005, personal_lr=0.1, lam=15.0, inner_steps=5, server_lr=beta), fed, X0, S)
    close(ours, papers.pfedme(F, X0, S, batches_of(fed), lambda t: 0.005, lambda t: 0.1, lam=15.0, K=5, beta=beta)[0])


def test_per_fedavg_without_adaptation_is_fedavg_on_every_other_minibatch() -> None:
    fed, half = federation(F, LocalWork(0, steps=6)), federation(F, LocalWork(0, steps=3))
    S = COHORTS["everybody"]
    close(iterates(PerFedAvg(lr=0.2, alpha=1e-12), fed, X0, S), iterates(FedAvg(lr=0.2), half, X0, S), 1e-9)


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize(("algorithm", "per_step"), [(Ditto(), 2), (PFedMe(inner_steps=3), 3), (PerFedAvg(), 1)])
def test_costs(algorithm: Any, per_step: int, backend: Any) -> None:
    """One vector each way, personal models never; every gradient."""
    fed, S = federation(F, LocalWork(4, steps=5), backend), [0, 3, 7]
    meter = Meter(fed)
    states(algorithm, fed, X0, [S], meter)
    there = np.isin(np.arange(F.n), S)
    size = nbytes(torch.zeros(F.d, dtype=torch.float64))
    np.testing.assert_array_equal(meter.ledger.down, size * there)
    np.testing.assert_array_equal(meter.ledger.up, size * there)
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations, per_step * 4 * 5 * there)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Ditto, {"lam": -1.0}, "Ditto.lam is -1.0"),
        (Ditto, {"personal_lr": 0.0}, "Ditto.personal_lr is 0.0"),
        (PFedMe, {"inner_steps": 0}, "PFedMe.inner_steps is 0; expected a whole number, 1 or more"),
        (PFedMe, {"lr": 0.2}, "PFedMe.lr is 0.2 and lam 15.0; expected a product below 2"),
        (PFedMe, {"personal_lr": 0.05, "lam": 40.0, "lr": 0.01}, "personal_lr below 0.05"),
        (PFedMe, {"server_lr": 0.0}, "PFedMe.server_lr is 0.0"),
        (PerFedAvg, {"alpha": float("nan")}, "PerFedAvg.alpha is nan"),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**settings)


def test_absent_clients_keep_their_personal_models() -> None:
    fed, method = federation(F, LocalWork(8, epochs=1)), Ditto()
    state = method.init(torch.from_numpy(X0), cohort(fed, 0))
    one = method.round(state, cohort(fed, 1, np.array([2])))
    two = method.round(one, cohort(fed, 2, np.array([5])))
    assert torch.equal(two.personal[2], one.personal[2]) and not torch.equal(two.personal[5], one.personal[5])
