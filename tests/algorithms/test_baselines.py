"""The baselines with a server: the methods that they are at the ends of their settings, and where they stop."""

from __future__ import annotations

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
    FedPAGE,
    FedSAM,
    FedSMOO,
    FedSpeed,
    MoFedSAM,
    Scaffold,
)
from algorithms.fedadmm import FedADMMState
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.errors import ConfigError
from fedsim.types import Kept
from tests.algorithms import papers
from tests.algorithms.quadratics import X0, F, Quadratics, everybody, federation, heterogeneous, iterates, some, states

ONE_STEP, WHOLE, EPOCHS = LocalWork(0, steps=1), LocalWork(0, steps=6), LocalWork(8, epochs=2)
ALL, TWO = everybody(F.n, 4), some(F.n, 2, 4)
COHORTS = pytest.mark.parametrize("cohorts", [ALL, TWO], ids=["everybody", "2 of 10"])
BACKENDS = pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])


def run(algorithm: Any, work: LocalWork = EPOCHS, cohorts: list[list[int]] = ALL, backend: Any = None) -> np.ndarray:
    """All models ``[rounds, d]``, with steps that decay."""
    return np.array(iterates(algorithm, federation(F, work, backend, lambda t: 0.8**t), X0, cohorts))


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-14) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    assert np.abs(a[-1] - X0).max() > 1e-3, "nothing moved"


SAME_BITS = {
    "MoFedSAM without ascent is FedCM": (MoFedSAM(lr=0.2, rho=0.0, alpha=0.3), FedCM(lr=0.2, alpha=0.3)),
    "MoFedSAM without momentum is FedSAM": (MoFedSAM(lr=0.2, rho=0.3, alpha=1.0), FedSAM(lr=0.2, rho=0.3)),
    "FedGamma without ascent is SCAFFOLD": (FedGamma(lr=0.2, rho=0.0, server_lr=0.7), Scaffold(lr=0.2, server_lr=0.7)),
    "FedSMOO without ascent is FedDyn": (FedSMOO(lr=0.2, lam=2.0, rho=0.0), FedSpeed(lr=0.2, lam=2.0, rho=0.0)),
}


@BACKENDS
@COHORTS
@pytest.mark.parametrize("pair", SAME_BITS)
def test_without_the_term_that_it_adds_it_is_another(pair: str, cohorts: list[list[int]], backend: Any) -> None:
    one, other = (run(a, EPOCHS, cohorts, backend) for a in SAME_BITS[pair])
    # Blocks take linear steps in another form, which rounds differently (``fedsim.engine.linear_step``).
    np.testing.assert_allclose(one, other, rtol=0.0 if isinstance(backend, Loop) else 1e-12, atol=0.0)
    assert np.abs(one[-1] - X0).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@COHORTS
def test_fednova_with_equal_numbers_of_steps_is_fedavg(cohorts: list[list[int]], momentum: float) -> None:
    nova, plain = (a(lr=0.1, momentum=momentum, server_lr=0.7) for a in (FedNova, FedAvg))
    close(run(nova, WHOLE, cohorts), run(plain, WHOLE, cohorts))
    assert np.abs(run(nova, EPOCHS, cohorts) - run(plain, EPOCHS, cohorts)).max() > 1e-3


def test_fedadmm_with_everybody_is_feddyn() -> None:
    close(run(FedADMM(lr=0.2, rho=0.5)), run(FedSpeed(lr=0.2, lam=2.0, rho=0.0)), 1e-13)
    close(run(FedADMM(lr=0.2, rho=0.5)), run(FedADMM(lr=0.2, rho=0.5, server_lr=1.0)), 1e-13)
    admm, dyn, active = (
        run(a, EPOCHS, TWO) for a in (FedADMM(rho=0.5), FedSpeed(lam=2.0, rho=0.0), FedADMM(rho=0.5, server_lr=1.0))
    )
    assert min(np.abs(a - b).max() for a, b in ((admm, dyn), (admm, active))) > 1e-3


def test_the_common_perturbation_of_fedsmoo_has_the_radius_of_the_ascent() -> None:
    for state in states(FedSMOO(rho=0.3), federation(F, EPOCHS), X0, TWO)[1:]:
        assert torch.linalg.vector_norm(state.s).item() == pytest.approx(0.3, abs=1e-12)


def test_bvr_l_sgd_with_the_mean_is_fedamd_in_sequence() -> None:
    """Whose anchors fill every other round; whole shards, as the two draw minibatches in different rounds."""
    fed = federation(F, WHOLE)
    amd = np.array(iterates(FedAMD(lr=0.2, period=2), fed, X0, everybody(F.n, 8)))
    close(np.array(iterates(BVRLSGD(lr=0.2, pick="mean"), fed, X0, ALL)), amd[::2])


@pytest.mark.parametrize("pick", ["one", "mean"])
def test_bvr_l_sgd_of_one_step_is_gradient_descent(pick: Any) -> None:
    """Then all go along v, whoever is picked; and so they do with recursive estimates on whole shards."""
    for period in (1, 3):
        fed = federation(F, ONE_STEP)
        x = iterates(BVRLSGD(lr=0.5, pick=pick, period=period), fed, X0, ALL)
        close(np.array(x), np.array(papers.gradient_descent(F, X0, 4, 0.5)), 1e-13)


def test_bvr_l_sgd_with_recursive_estimates_needs_everybody() -> None:
    message = r"BVRLSGD.period is 2, but 2 of 10 clients take part.*fraction to 1 without waiting, or"
    with pytest.raises(ConfigError, match=message):
        run(BVRLSGD(period=2), EPOCHS, TWO)


def test_fedpage_is_gradient_descent_with_heads_only_and_with_one_step_by_everybody() -> None:
    expected = np.array(papers.gradient_descent(F, X0, 4, 0.5))
    fed = federation(F, WHOLE)
    close(np.array(iterates(FedPAGE(server_lr=0.5, p=1.0), fed, X0, TWO)), expected)
    fed = federation(F, ONE_STEP)
    close(np.array(iterates(FedPAGE(lr=0.1, server_lr=0.5, p=1e-9), fed, X0, ALL)), expected, 1e-13)


FEW, STEPS = heterogeneous(n=4, d=8), 5


def limit(algorithm: Any, rounds: int) -> np.ndarray:
    """The model on the smaller problem after so many rounds with everybody, which moved no more."""
    fed = federation(FEW, LocalWork(0, steps=STEPS))
    *_, before, last = iterates(algorithm, fed, np.zeros(8), everybody(4, rounds))
    assert np.abs(last - before).max() < 1e-12
    return last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "size", "rounds"),
    [
        (FedADMM(lr=0.3, rho=0.3), 4, 130),
        (FedADMM(lr=0.3, rho=0.3), 1, 1200),
        (FedGamma(lr=0.3, rho=0.0), 4, 130),
        (FedSMOO(lr=0.3, lam=3.0, rho=0.0), 1, 1200),
        (FedPAGE(lr=0.1, server_lr=0.4, p=0.3), 4, 200),
        (FedPAGE(lr=0.1, server_lr=0.4, p=0.3), 1, 300),
        (BVRLSGD(lr=0.3), 4, 200),
        (BVRLSGD(lr=0.3, pick="mean"), 4, 130),
        (BVRLSGD(lr=0.2, period=3), 4, 200),
    ],
)
def test_reaches_the_minimiser_with_constant_steps(algorithm: Any, size: int, rounds: int) -> None:
    """Everybody, or 1 of 4."""
    fed = federation(FEW, LocalWork(0, steps=STEPS), Blocks(4) if size == 4 else None)
    last = iterates(algorithm, fed, np.zeros(8), some(4, size, rounds))[-1]
    assert np.linalg.norm(last - FEW.minimiser()) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 1], ids=["everybody", "1 of 4"])
@pytest.mark.parametrize(
    "algorithm",
    [FedADMM(lr=0.2, rho=0.3), FedPAGE(lr=0.05, server_lr=0.3, p=0.5), BVRLSGD(lr=0.2, pick="mean"), BVRLSGD(lr=0.2)],
)
def test_weighted_clients_reach_the_minimiser_of_the_weighted_objective(algorithm: Any, size: int) -> None:
    """sum_i p_i f_i, whoever takes part; BVR-L-SGD needs everybody."""
    if isinstance(algorithm, BVRLSGD) and size == 1:
        return
    w = np.array([1.0, 2.0, 3.0, 6.0])
    H = sum(w[i] * FEW.H(i) for i in range(4))
    weighted = np.linalg.solve(H, sum(w[i] * FEW.H(i) @ FEW.own_minimiser(i) for i in range(4)))
    fed = federation(FEW, LocalWork(0, steps=STEPS), Blocks(4) if size == 4 else None, weights=w)
    last = iterates(algorithm, fed, np.zeros(8), some(4, size, 250 if size == 4 else 1500))[-1]
    assert np.linalg.norm(last - weighted) < 1e-6
    assert np.linalg.norm(weighted - FEW.minimiser()) > 1e-2


@pytest.mark.slow
def test_with_minibatches_bvr_l_sgd_and_fedpage_reach_it_as_well() -> None:
    """Variance reduction: the noise vanishes with the steps."""
    fed = federation(FEW, LocalWork(4, steps=5))
    for algorithm in (BVRLSGD(lr=0.1), FedPAGE(lr=0.05, server_lr=0.3, p=0.5)):
        last = iterates(algorithm, fed, np.zeros(8), everybody(4, 400))[-1]
        assert np.linalg.norm(last - FEW.minimiser()) < 1e-7
    assert np.linalg.norm(iterates(FedAvg(lr=0.1), fed, np.zeros(8), everybody(4, 400))[-1] - FEW.minimiser()) > 1e-2


def test_the_optimum_with_exact_duals_is_a_fixed_point_of_fedadmm_whoever_takes_part() -> None:
    x = torch.from_numpy(F.minimiser())
    u = {i: torch.from_numpy(-F.grad(i, F.minimiser())) for i in range(F.n)}
    z = {i: x + u_i / 0.5 for i, u_i in u.items()}
    state = FedADMMState(x, Kept(F.n, x * 0, u), Kept(F.n, x, z))
    for S in ([2, 7], [5], list(range(10))):
        after = FedADMM(rho=0.5).round(state, cohort(federation(F, WHOLE), 1, np.array(S)))
        np.testing.assert_allclose(after.x, x, rtol=0, atol=1e-12)


def uneven(eta: float, p: np.ndarray | None = None) -> tuple[Any, np.ndarray, np.ndarray]:
    """A federation of f_i(x) = h_i (x - b_i)^2 / 2 with 2, 4 and 12 steps a round; FedAvg's limit and FedNova's."""
    h, b, K = np.array([1.0, 0.5, 0.2]), np.array([1.0, -2.0, 5.0]), np.array([2, 4, 12])
    f = Quadratics([np.full((k, 1), s) for k, s in zip(K, h**0.5, strict=True)], [])
    f = Quadratics(f.A, [A[:, 0] * minimiser for A, minimiser in zip(f.A, b, strict=True)])
    pull = 1 - (1 - eta * h) ** K
    fedavg, fednova = (np.sum(w * pull * b) / np.sum(w * pull) for w in (1.0, 1 / K))
    return federation(f, LocalWork(1, epochs=1)), np.array([fedavg]), np.array([fednova])


def test_fednova_takes_out_the_bias_that_uneven_numbers_of_steps_give_fedavg() -> None:
    """Closed forms, which with short steps are the minimisers of sum_i K_i f_i and of sum_i f_i."""
    for algorithm, which in ((FedAvg, 1), (FedNova, 2)):
        case = uneven(0.1)
        x = iterates(algorithm(lr=0.1), case[0], np.zeros(1), everybody(3, 150))[-1]
        np.testing.assert_allclose(x, case[which], rtol=0, atol=1e-10)
    _, fedavg, fednova = uneven(1e-5)
    assert fednova == pytest.approx((1 - 1 + 1) / 1.7, abs=1e-3)
    assert fedavg == pytest.approx((2 - 4 + 12) / (2 + 2 + 2.4), abs=1e-3)


@pytest.mark.slow
def test_fedgamma_ends_where_the_gradients_after_the_ascent_cancel() -> None:
    """As FedSpeed does."""
    x = limit(FedGamma(lr=0.5, rho=0.3), 200)
    np.testing.assert_allclose(x, limit(FedSpeed(lr=0.5, lam=3.0, rho=0.3), 200), rtol=0, atol=1e-10)
    assert np.linalg.norm(x - FEW.minimiser()) > 1e-2


@pytest.mark.slow
def test_fedsmoo_stays_near_the_minimiser_in_proportion_to_the_radius() -> None:
    """It does not settle: where gradients vanish the corrections of the perturbation swing around it."""
    fed, errors = federation(FEW, LocalWork(0, steps=STEPS), Blocks(4)), []
    for rho in (0.01, 0.04):
        last = np.array(iterates(FedSMOO(lr=0.3, lam=3.0, rho=rho), fed, np.zeros(8), everybody(4, 300))[-50:])
        errors.append(np.linalg.norm(last - FEW.minimiser(), axis=1).max())
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.1) and errors[1] < 0.04


@pytest.mark.slow
def test_mofedsam_ends_where_fedsam_with_a_shorter_step_does() -> None:
    """By alpha, as FedCM does with FedAvg's."""
    x = limit(MoFedSAM(lr=0.5, rho=0.05, alpha=0.5), 200)
    np.testing.assert_allclose(x, limit(FedSAM(lr=0.25, rho=0.05), 200), rtol=0, atol=1e-10)
