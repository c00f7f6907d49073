"""Costs of a round, in model-sized vectors and gradient evaluations, by the ledger; and the checks of settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import (
    BVRLSGD,
    FedADMM,
    FedAMD,
    FedAvg,
    FedCM,
    FedGamma,
    FedNova,
    FedOpt,
    FedPAGE,
    FedProx,
    FedSAM,
    FedSMOO,
    FedSpeed,
    MoFedSAM,
    Scaffold,
)
from algorithms.fedamd import optimal_p
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.messages.wire import nbytes
from tests.algorithms.quadratics import federation, heterogeneous, states

F = heterogeneous()
M = np.array([len(b) for b in F.b])
K = 3
S = [2, 7, 8]
BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(2)], ids=["loop", "blocks"])


def vectors(charged: np.ndarray) -> np.ndarray:
    """Float64 vectors of length d in the bytes of one message: 1 for the message, 2 for a tuple, 6 and 8 d for each."""
    count: np.ndarray = charged // (6 + 8 * F.d)
    np.testing.assert_array_equal(charged, count * (6 + 8 * F.d) + (count > 0) + 2 * (count > 1))
    return count


def costs(algorithm: Any, fed: Federation, ids: list[int] = S) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors down, vectors up and gradient evaluations of each node in round 1."""
    (before,), meter = states(algorithm, fed, np.zeros(F.d), []), Meter(fed)
    algorithm.round(before, cohort(fed, 1, np.array(ids), meter=meter))
    return vectors(meter.ledger.down), vectors(meter.ledger.up), meter.ledger.gradient_evaluations


TABLE = [                          # vectors down, up; whole-shard gradients a step, and besides
    (FedAvg(), 1, 1, 1, 0),
    (FedAvg(momentum=0.9), 1, 1, 1, 0),
    (FedProx(), 1, 1, 1, 0),
    (FedOpt(), 1, 1, 1, 0),
    (FedOpt(optimizer="yogi"), 1, 1, 1, 0),
    (FedOpt(optimizer="adagrad"), 1, 1, 1, 0),
    (FedSAM(), 1, 1, 2, 0),
    (FedSAM(rho=0.0), 1, 1, 1, 0),
    (Scaffold(), 2, 2, 1, 0),
    (Scaffold(option="I"), 2, 2, 1, 1),
    (FedSpeed(), 1, 1, 2, 0),
    (FedSpeed(dual_avg="active"), 1, 1, 2, 0),
    (FedSpeed(rho=0.0), 1, 1, 1, 0),
    (FedADMM(), 1, 1, 1, 0),
    (FedGamma(), 2, 2, 2, 0),
    (FedGamma(rho=0.0), 2, 2, 1, 0),
    (FedSMOO(), 2, 2, 2, 0),
    (FedSMOO(rho=0.0), 2, 2, 1, 0),
    (FedAMD(p=0.0), 2, 1, 2, -2),     # whose first two cancel
    (FedAMD(p=1.0), 1, 1, 0, 1),
]  # fmt: skip


@BACKENDS
@pytest.mark.parametrize(("algorithm", "down", "up", "per_step", "besides"), TABLE)
def test_a_client_of_the_cohort_pays_what_the_paper_says(
    algorithm: Any, down: int, up: int, per_step: int, besides: int, backend: Any
) -> None:
    taking_part = np.isin(np.arange(F.n), S).astype(int)
    got_down, got_up, evaluations = costs(algorithm, federation(F, LocalWork(0, steps=K), backend))
    np.testing.assert_array_equal(got_down, down * taking_part)
    np.testing.assert_array_equal(got_up, up * taking_part)
    np.testing.assert_array_equal(evaluations, (per_step * K + besides) * M * taking_part)


@BACKENDS
@pytest.mark.parametrize(
    ("algorithm", "down", "per_step"),
    [(FedCM(), 2, 1), (MoFedSAM(), 2, 2), (MoFedSAM(rho=0.0), 2, 1), (FedNova(), 1, 1), (FedNova(momentum=0.9), 1, 1)],
)
def test_a_vector_and_a_number_are_sent(algorithm: Any, down: int, per_step: int, backend: Any) -> None:
    """FedCM's two vectors down, in the first round as well."""
    fed = federation(F, LocalWork(0, steps=K), backend)
    meter = Meter(fed)
    states(algorithm, fed, np.zeros(F.d), [S], meter)
    taking_part = np.isin(np.arange(F.n), S).astype(int)
    x = torch.zeros(F.d, dtype=torch.float64)
    assert nbytes((x, x[0])) < nbytes(x) + 20
    np.testing.assert_array_equal(meter.ledger.up, nbytes((x, x[0])) * taking_part)
    np.testing.assert_array_equal(vectors(meter.ledger.down), down * taking_part)
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations, per_step * K * M * taking_part)


@BACKENDS
@pytest.mark.parametrize("pick", ["one", "mean"])
def test_bvr_l_sgd_uploads_the_model_of_one_and_all_have_worked_for_it(pick: Any, backend: Any) -> None:
    """Two messages of a vector down, one up, and another of those who are picked."""
    fed, algorithm = federation(F, LocalWork(0, steps=K), backend), BVRLSGD(pick=pick)
    (before,), meter = states(algorithm, fed, np.zeros(F.d), []), Meter(fed)
    algorithm.round(before, cohort(fed, 1, np.array(S), meter=meter))
    taking_part = np.isin(np.arange(F.n), S).astype(int)
    picked = np.isin(np.arange(F.n), cohort(fed, 1, np.array(S)).pick().ids) if pick == "one" else taking_part
    np.testing.assert_array_equal(meter.ledger.down, 2 * (1 + 6 + 8 * F.d) * taking_part)
    np.testing.assert_array_equal(meter.ledger.up, (1 + 6 + 8 * F.d) * (taking_part + picked))
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations, (2 * K - 1) * M * taking_part)


def test_who_is_picked_follows_the_weights() -> None:
    """One of the cohort; of 3000 rounds each by its share."""
    weights = np.array([1, 1, 2, 1, 1, 1, 1, 4, 2, 1])
    fed = federation(F, LocalWork(0), weights=weights)
    drawn = [cohort(fed, t, np.array([2, 7, 8])).pick().ids.item() for t in range(3000)]
    assert {i: drawn.count(i) / 3000 for i in set(drawn)} == pytest.approx({2: 0.25, 7: 0.5, 8: 0.25}, abs=0.03)


@BACKENDS
def test_a_round_of_fedpage_is_of_all_clients_or_of_the_cohort(backend: Any) -> None:
    """1 vector each way and a gradient for all n; 3 down, 1 up, two large batches and two gradients a further step."""
    fed = federation(F, LocalWork(8, steps=K), backend)
    taking_part, meters = np.isin(np.arange(F.n), S).astype(int), [Meter(fed), Meter(fed)]
    (state,) = states(FedPAGE(p=1e-9), fed, np.zeros(F.d), [])
    for t, meter in enumerate(meters, 1):
        state = FedPAGE(p=1e-9, large_batch=0 if t == 1 else 25).round(state, cohort(fed, t, np.array(S), meter))
    heads, tails = (meter.ledger for meter in meters)
    np.testing.assert_array_equal(vectors(heads.down), 1)
    np.testing.assert_array_equal(vectors(heads.up), 1)
    np.testing.assert_array_equal(heads.gradient_evaluations, M)
    np.testing.assert_array_equal(tails.down, taking_part * (3 * (6 + 8 * F.d) + 3))
    np.testing.assert_array_equal(vectors(tails.up), taking_part)
    further = np.minimum(K * 8, M) - np.minimum(8, M)
    np.testing.assert_array_equal(tails.gradient_evaluations, 2 * (np.minimum(25, M) + further) * taking_part)


@BACKENDS
def test_roles_pay_for_themselves(backend: Any) -> None:
    """Anchors 1 down and one large batch, miners 2 down and two minibatch gradients a step but the first."""
    fed = federation(F, LocalWork(batch_size=8, steps=K), backend)
    everybody = list(range(F.n))
    anchors, miners = (half.ids for half in cohort(fed, 1).split(0.5))
    assert len(anchors) and len(miners)
    down, up, evaluations = costs(FedAMD(p=0.5, large_batch=25), fed, everybody)
    np.testing.assert_array_equal(down, 2 - np.isin(everybody, anchors))
    np.testing.assert_array_equal(up, 1)
    np.testing.assert_array_equal(evaluations[anchors], np.minimum(25, M)[anchors])
    np.testing.assert_array_equal(evaluations[miners], 2 * (np.minimum(K * 8, M) - np.minimum(8, M))[miners])


@BACKENDS
@pytest.mark.parametrize(
    "algorithm",
    [
        *(cls() for cls in (FedAvg, FedProx, FedOpt, FedCM, FedSAM, Scaffold, FedSpeed, FedAMD, FedADMM)),
        *(cls() for cls in (FedNova, MoFedSAM, FedGamma, FedSMOO, BVRLSGD, FedPAGE)),
    ],
)
def test_initialisation_is_free_but_for_fedamds_first_gradients(algorithm: Any, backend: Any) -> None:
    """All n clients send them, each from its whole shard."""
    fed = federation(F, LocalWork(8), backend)
    meter = Meter(fed)
    states(algorithm, fed, np.zeros(F.d), [], meter)
    first = int(isinstance(algorithm, FedAMD))
    np.testing.assert_array_equal(vectors(meter.ledger.down), first)
    np.testing.assert_array_equal(vectors(meter.ledger.up), first)
    np.testing.assert_array_equal(meter.ledger.gradient_evaluations, first * M)


@pytest.mark.parametrize(("n", "cohort", "p"), [(100, 20, 0.880), (100, 10, 0.830), (20, 10, 0.811), (100, 100, 0.955)])
def test_the_optimal_anchor_probability(n: int, cohort: int, p: float) -> None:
    assert optimal_p(n, cohort) == pytest.approx(p, abs=5e-4)
    grid = np.linspace(0.001, 0.999, 999)
    cost = 1 / (1 - grid**cohort) + 2 * n / (cohort * grid * np.sqrt(1 - grid**cohort))
    assert abs(optimal_p(n, cohort) - grid[cost.argmin()]) <= 1e-3


def test_fedamd_uses_it_by_default() -> None:
    fed = replace(federation(F, LocalWork(8)), cohort_size=4)
    assert FedAMD().probability(cohort(fed, 1, np.array([3]))) == optimal_p(10, 4)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (FedAvg, {"lr": 0.0}, "FedAvg.lr is 0.0"),
        (FedAvg, {"lr": float("nan")}, "FedAvg.lr is nan"),
        (FedAvg, {"server_lr": -1.0}, "FedAvg.server_lr is -1.0"),
        (FedAvg, {"momentum": 1.0}, r"FedAvg.momentum is 1.0; expected a number in \[0, 1\)"),
        (FedProx, {"lr": 0.0}, "FedProx.lr is 0.0"),
        (FedProx, {"mu": -0.1}, "FedProx.mu is -0.1; expected a finite number, 0 or more"),
        (FedProx, {"mu": float("inf")}, "FedProx.mu is inf"),
        (FedProx, {"server_lr": 0.0}, "FedProx.server_lr is 0.0"),
        (FedOpt, {"lr": -1.0}, "FedOpt.lr is -1.0"),
        (FedOpt, {"server_lr": 0.0}, "FedOpt.server_lr is 0.0"),
        (FedOpt, {"optimizer": "sgd"}, "FedOpt.optimizer is 'sgd'; expected one of 'adagrad', 'adam', 'yogi'"),
        (FedOpt, {"beta1": 1.0}, r"FedOpt.beta1 is 1.0; expected a number in \[0, 1\)"),
        (FedOpt, {"beta2": -0.1}, "FedOpt.beta2 is -0.1"),
        (FedOpt, {"v0": -1e-6}, "FedOpt.v0 is -1e-06"),
        (FedOpt, {"tau": 0.0}, "FedOpt.tau is 0.0; expected a finite number above 0"),
        (FedCM, {"lr": 0.0}, "FedCM.lr is 0.0"),
        (FedCM, {"alpha": 0.0}, "FedCM.alpha is 0.0; expected a number above 0 and at most 1"),
        (FedCM, {"alpha": 1.5}, "FedCM.alpha is 1.5"),
        (FedCM, {"server_lr": float("nan")}, "FedCM.server_lr is nan"),
        (FedSAM, {"lr": 0.0}, "FedSAM.lr is 0.0"),
        (FedSAM, {"rho": -0.1}, "FedSAM.rho is -0.1"),
        (FedSAM, {"server_lr": 0.0}, "FedSAM.server_lr is 0.0"),
        (Scaffold, {"lr": "0.1"}, "Scaffold.lr is '0.1'"),
        (Scaffold, {"option": "III"}, "Scaffold.option is 'III'; expected one of 'I', 'II'"),
        (FedNova, {"momentum": 1.0}, "FedNova.momentum is 1.0"),
        (FedADMM, {"rho": 0.0}, "FedADMM.rho is 0.0"),
        (FedADMM, {"server_lr": -1.0}, "FedADMM.server_lr is -1.0"),
        (MoFedSAM, {"alpha": 0.0}, "MoFedSAM.alpha is 0.0"),
        (FedGamma, {"rho": -0.1}, "FedGamma.rho is -0.1"),
        (FedSMOO, {"lam": -1.0}, "FedSMOO.lam is -1.0"),
        (BVRLSGD, {"period": 0}, "BVRLSGD.period is 0; expected a whole number, 1 or more"),
        (BVRLSGD, {"pick": "all"}, "BVRLSGD.pick is 'all'; expected one of 'one', 'mean'"),
        (FedPAGE, {"p": 0.0}, "FedPAGE.p is 0.0; expected a number above 0"),
        (FedPAGE, {"large_batch": -1}, "FedPAGE.large_batch is -1; expected a whole number, 0 or more"),
        (FedSpeed, {"lam": 0.0}, "FedSpeed.lam is 0.0"),
        (FedSpeed, {"rho": -0.1}, "FedSpeed.rho is -0.1"),
        (FedSpeed, {"alpha": 1.1}, r"FedSpeed.alpha is 1.1; expected a number in \[0, 1\]"),
        (FedSpeed, {"dual_avg": "none"}, "FedSpeed.dual_avg is 'none'"),
        (FedAMD, {"p": 1.5}, "FedAMD.p is 1.5"),
        (FedAMD, {"p": "best"}, "FedAMD.p is 'best'"),
        (FedAMD, {"p": float("nan")}, "FedAMD.p is nan"),
        (FedAMD, {"period": 1}, "FedAMD.period is 1"),
        (FedAMD, {"large_batch": -1}, "FedAMD.large_batch is -1"),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**settings)
