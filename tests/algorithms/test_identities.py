"""Identities between methods, and the points that they leave in place: no more than rounding is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from algorithms import FedAMD, FedAvg, FedCM, FedOpt, FedProx, FedSAM, FedSpeed, Scaffold
from algorithms.fedamd import FedAMDState
from algorithms.fedspeed import FedSpeedState
from algorithms.scaffold import ScaffoldState
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.types import Kept
from tests.algorithms import papers
from tests.algorithms.quadratics import (
    X0,
    F,
    Quadratics,
    batches_of,
    everybody,
    federation,
    heterogeneous,
    iterates,
    some,
    states,
)

ONE_STEP, WHOLE, EPOCHS = LocalWork(0, steps=1), LocalWork(0, steps=6), LocalWork(8, epochs=2)
ALL, TWO = everybody(F.n, 4), some(F.n, 2, 4)


def run(algorithm: Any, work: LocalWork = WHOLE, cohorts: list[list[int]] = ALL, f: Any = F) -> np.ndarray:
    """All models ``[rounds, d]``."""
    return np.array(iterates(algorithm, federation(f, work), X0, cohorts))


def close(a: Any, b: Any, tolerance: float = 1e-14) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    assert np.abs(np.asarray(a)[-1] - X0).max() > 1e-3, "nothing moved"


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.5), Scaffold(lr=0.5), Scaffold(lr=0.5, option="I")])
def test_one_step_with_everybody_is_gradient_descent(algorithm: Any) -> None:
    close(run(algorithm, ONE_STEP), papers.gradient_descent(F, X0, 4, 0.5))


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize("cohorts", [ALL, TWO], ids=["everybody", "2 of 10"])
@pytest.mark.parametrize("algorithm", [FedProx(lr=0.2, mu=0.0, server_lr=0.7), FedCM(lr=0.2, alpha=1.0, server_lr=0.7)])
def test_without_the_term_that_they_add_they_are_fedavg(
    algorithm: Any, cohorts: list[list[int]], backend: Any
) -> None:
    """Bit for bit: nothing is added to the gradient but zeros."""
    fed = federation(F, EPOCHS, backend, decay=lambda t: 0.8**t)
    plain = iterates(FedAvg(lr=0.2, server_lr=0.7), fed, X0, cohorts)
    np.testing.assert_array_equal(iterates(algorithm, fed, X0, cohorts), plain)


def test_fedprox_with_one_step_is_fedavg() -> None:
    """At y = x the proximal term has no gradient."""
    np.testing.assert_array_equal(run(FedProx(mu=5.0), ONE_STEP, TWO), run(FedAvg(), ONE_STEP, TWO))
    assert np.abs(run(FedProx(mu=5.0), EPOCHS, TWO) - run(FedAvg(), EPOCHS, TWO)).max() > 1e-3


def test_the_first_round_of_fedcm_is_fedavg_with_a_shorter_step() -> None:
    """As Delta is 0, by alpha eta; the second round is not."""
    cm, short = (run(a, EPOCHS, TWO) for a in (FedCM(lr=0.4, alpha=0.25), FedAvg(lr=0.1)))
    close(cm[:1], short[:1])
    assert np.abs(cm[1] - short[1]).max() > 1e-3


def test_fedcm_with_one_step_is_momentum_at_the_server() -> None:
    """Then x moves along Delta <- alpha mean_S g_i + (1 - alpha) Delta, whatever eta was in the round before."""
    fed, x, delta = federation(F, ONE_STEP, decay=lambda t: 0.7**t), X0, np.zeros(F.d)
    for t, (S, ours) in enumerate(zip(TWO, iterates(FedCM(lr=0.5, alpha=0.3), fed, X0, TWO), strict=True), 1):
        delta = 0.3 * np.mean([F.grad(i, x) for i in S], axis=0) + 0.7 * delta
        x = x - 0.5 * 0.7**t * delta
        np.testing.assert_allclose(ours, x, rtol=0, atol=1e-14)


BY_HAND = {                        # the square of Delta is 4 and v was 1; then Delta is what half of the way to 4 is
    "adagrad": lambda x1: (1 + 4, 1 + 4 + (2 - x1 / 2) ** 2),
    "adam": lambda x1: (0.75 + 1, 0.75 * 1.75 + 0.25 * (2 - x1 / 2) ** 2),
    "yogi": lambda x1: (1 + 1, 2 - 0.25 * (2 - x1 / 2) ** 2 * (-1 if (2 - x1 / 2) ** 2 > 2 else 1)),
}


@pytest.mark.parametrize("optimizer", BY_HAND)
def test_the_first_two_steps_of_fedopt_by_hand(optimizer: Any) -> None:
    """One client with f(x) = (x - 4)^2 / 2 makes one step of size 1/2 from 0: Delta = 2. Then m = 1, with tau = 1."""
    one = Quadratics([np.ones((1, 1))], [np.array([4.0])])
    algorithm = FedOpt(lr=0.5, server_lr=1.0, optimizer=optimizer, beta1=0.5, beta2=0.75, tau=1.0)
    _, first, second = states(algorithm, federation(one, ONE_STEP), np.zeros(1), everybody(1, 2))
    v1, v2 = BY_HAND[optimizer](first.x.item())
    assert (first.m.item(), first.v.item()) == (1, v1)
    assert first.x.item() == pytest.approx(1 / (v1**0.5 + 1), abs=1e-15)
    m2 = 0.5 + 0.5 * (2 - first.x.item() / 2)
    assert (second.m.item(), second.v.item()) == pytest.approx((m2, v2), abs=1e-15)
    assert second.x.item() == pytest.approx(first.x.item() + m2 / (v2**0.5 + 1), abs=1e-15)


@pytest.mark.parametrize("optimizer", ["adagrad", "yogi"])
def test_fedopt_is_fedavg_where_tau_outweighs_the_updates(optimizer: Any) -> None:
    """Then sqrt(v) + tau is 2 tau for every coordinate; without momentum the server's step is server_lr / (2 tau)."""
    adaptive = FedOpt(lr=0.2, server_lr=0.7 * 2e6, optimizer=optimizer, beta1=0.0, tau=1e6)
    close(run(adaptive, EPOCHS, TWO), run(FedAvg(lr=0.2, server_lr=0.7), EPOCHS, TWO), 1e-10)


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("cohorts", [ALL, TWO], ids=["everybody", "2 of 10"])
def test_the_first_round_of_scaffold_is_fedavg(cohorts: list[list[int]], option: Any) -> None:
    scaffold, fedavg = (run(a, EPOCHS, cohorts) for a in (Scaffold(lr=0.2, option=option), FedAvg(lr=0.2)))
    close(scaffold[:1], fedavg[:1])
    assert np.abs(scaffold[1] - fedavg[1]).max() > 1e-3


@pytest.mark.parametrize("settings", [{"rho": 0.3}, {"rho": 0.3, "normalize": False, "alpha": 0.5}, {"rho": 0.0}])
@pytest.mark.slow
def test_both_server_rules_of_fedspeed_are_one_when_everybody_takes_part(settings: dict[str, Any]) -> None:
    paper, code = (run(FedSpeed(lam=2.0, dual_avg=d, **settings), EPOCHS) for d in ("active", "all"))
    close(paper, code)
    paper, code = (run(FedSpeed(lam=2.0, dual_avg=d, **settings), EPOCHS, TWO) for d in ("active", "all"))
    assert np.abs(paper - code).max() > 1e-3


@pytest.mark.parametrize("cohorts", [ALL, TWO], ids=["everybody", "2 of 10"])
def test_fedsam_without_ascent_is_fedavg(cohorts: list[list[int]]) -> None:
    plain = run(FedAvg(lr=0.2, server_lr=0.7), EPOCHS, cohorts)
    np.testing.assert_array_equal(run(FedSAM(lr=0.2, server_lr=0.7, rho=0.0), EPOCHS, cohorts), plain)
    assert np.abs(run(FedSAM(lr=0.2, server_lr=0.7, rho=0.3), EPOCHS, cohorts) - plain).max() > 1e-3


@pytest.mark.parametrize("dual_avg", ["all", "active"])
def test_no_share_of_the_ascent_gradient_is_no_ascent(dual_avg: Any) -> None:
    without = run(FedSpeed(rho=0.0, dual_avg=dual_avg), EPOCHS, TWO)
    np.testing.assert_array_equal(run(FedSpeed(rho=0.3, alpha=0.0, dual_avg=dual_avg), EPOCHS, TWO), without)
    assert np.abs(run(FedSpeed(rho=0.3, dual_avg=dual_avg), EPOCHS, TWO) - without).max() > 1e-3


class OneClient:
    """A ``Local`` of this file: ``steps`` steps with the gradients of one quadratic, which are recorded."""

    def __init__(self, i: int, steps: int) -> None:
        self.i, self.K, self.gradients = i, steps, []  # type: ignore[var-annotated]
        self.decay = torch.tensor(1.0, dtype=torch.float64)
        self.steps = torch.tensor(float(steps), dtype=torch.float64)

    def grad(self, x: Any, batch: Any = None) -> Any:
        self.gradients.append(F.grad(self.i, x.numpy()))
        return torch.from_numpy(self.gradients[-1])

    def descend(self, y: Any, direction: Any, eta: Any, prox: float) -> Any:
        return y - eta * direction

    def fold(self, step: Any, carry: Any, *consts: Any) -> Any:
        for _ in range(self.K):
            carry = step(carry, None, *consts)
        return carry


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_the_prox_correction_is_a_moving_average_of_the_clients_gradients(rho: float) -> None:
    """ghat+ = (1 - gam) ghat + sum_k gam_k g_k, with gam_k = (eta/lam) (1 - eta/lam)^(K-1-k) summing to gam."""
    K, eta, lam = 7, 0.3, 2.0
    local, x, ghat = OneClient(4, K), torch.from_numpy(X0), torch.ones(F.d, dtype=torch.float64)
    _, after = FedSpeed(lr=eta, lam=lam, rho=rho).client(local, x, ghat)  # type: ignore[arg-type]
    g = np.array(local.gradients[1::2] if rho else local.gradients)
    assert len(g) == K
    gam_k = eta / lam * (1 - eta / lam) ** np.arange(K - 1, -1, -1)
    assert gam_k.sum() == pytest.approx(1 - (1 - eta / lam) ** K)
    np.testing.assert_allclose(after, (1 - gam_k.sum()) * ghat.numpy() + gam_k @ g, rtol=0, atol=1e-14)


def test_miners_of_one_step_all_send_the_same_update() -> None:
    """eta times the mean cache, whatever their data: their two gradients cancel up to the rounding of v - g + g."""
    fed = federation(F, LocalWork(8, steps=1))
    v = torch.linspace(-1, 1, F.d, dtype=torch.float64)
    sent = cohort(fed, 1).each(FedAMD(lr=0.25).miner, (torch.from_numpy(X0), v))
    np.testing.assert_allclose(sent.stacked, np.tile(0.25 * v, (F.n, 1)), rtol=0, atol=1e-15)


def test_with_anchors_only_the_model_never_moves() -> None:
    for cohorts in (ALL, TWO):
        np.testing.assert_array_equal(run(FedAMD(p=1.0), EPOCHS, cohorts), np.tile(X0, (4, 1)))


def test_with_miners_only_the_model_moves_by_the_same_vector_every_round() -> None:
    moves = np.diff(run(FedAMD(lr=0.2, p=0.0)), axis=0, prepend=X0[None])
    close(moves, np.tile(moves[0], (4, 1)))
    assert np.abs(moves[0]).max() > 1e-2


def test_miners_and_anchors_in_turn_with_one_step_are_gradient_descent_at_half_the_pace() -> None:
    """Rounds 1, 3, ... are of miners, with the step eta eta_s; rounds 2, 4, ... of anchors."""
    x = run(FedAMD(lr=0.5, server_lr=0.8, period=2), ONE_STEP, everybody(F.n, 6))
    close(x, np.repeat(papers.gradient_descent(F, X0, 3, 0.5 * 0.8), 2, axis=0))


@pytest.mark.parametrize("work", [WHOLE, EPOCHS], ids=["whole shard", "epochs"])
def test_miners_and_anchors_in_turn_are_bvr_l_sgd_with_averaging(work: LocalWork) -> None:
    fed = federation(F, work)
    x = iterates(FedAMD(lr=0.2, period=2), fed, X0, everybody(F.n, 6))
    close(x[::2], papers.bvr_l_sgd(F, X0, 3, batches_of(fed), 0.2, averaging_every=2))


X_STAR = torch.from_numpy(F.minimiser())
DUALS = {i: torch.from_numpy(F.grad(i, F.minimiser())) for i in range(F.n)}
ZERO = torch.zeros_like(X_STAR)
EXACT = Kept(F.n, ZERO, DUALS)
AT_THE_OPTIMUM: list[tuple[Any, Any]] = [
    (FedSpeed(lam=2.0, rho=0.0), FedSpeedState(X_STAR, EXACT, ZERO)),
    (FedSpeed(lam=2.0, rho=0.3, alpha=0.0), FedSpeedState(X_STAR, EXACT, ZERO)),
    (Scaffold(), ScaffoldState(X_STAR, ZERO, EXACT)),
    (Scaffold(option="I"), ScaffoldState(X_STAR, ZERO, EXACT)),
    (FedAMD(p=0.0), FedAMDState(X_STAR, ZERO, EXACT)),
    (FedAMD(p=0.5), FedAMDState(X_STAR, ZERO, EXACT)),
    (FedAMD(p=1.0), FedAMDState(X_STAR, ZERO, EXACT)),
]


@pytest.mark.parametrize("S", [list(range(10)), [2, 7], [5]], ids=["everybody", "2 of 10", "1 of 10"])
@pytest.mark.parametrize(("algorithm", "state"), AT_THE_OPTIMUM, ids=[str(a) for a, _ in AT_THE_OPTIMUM])
def test_the_optimum_with_exact_duals_stays(algorithm: Any, state: Any, S: list[int]) -> None:
    """Whoever takes part, and the duals stay as well."""
    after = algorithm.round(state, cohort(federation(F, WHOLE), 1, np.array(S)))
    for before, now in zip(state, after, strict=True):
        for i in range(F.n):
            a, b = (part[i] if isinstance(part, Kept) else part for part in (before, now))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_fedavg_leaves_the_optimum() -> None:
    fed = federation(F, WHOLE)
    assert np.abs(iterates(FedAvg(), fed, F.minimiser(), ALL)[0] - F.minimiser()).max() > 1e-3


@pytest.mark.parametrize("S", [[2, 7], [5], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_the_papers_server_rule_leaves_the_optimum_by_a_known_step(S: list[int]) -> None:
    """x* - lambda mean_S grad f_i(x*), which is not zero unless everybody takes part."""
    lam = 2.0
    algorithm = FedSpeed(lam=lam, rho=0.0, dual_avg="active")
    after = algorithm.round(FedSpeedState(X_STAR, EXACT, ZERO), cohort(federation(F, WHOLE), 1, np.array(S)))
    predicted = X_STAR - lam * torch.stack([DUALS[i] for i in S]).mean(0)
    np.testing.assert_allclose(after.x, predicted, rtol=0, atol=1e-12)
    assert (predicted - X_STAR).abs().max() > 1e-2


@pytest.mark.slow
def test_equal_clients_are_one_client() -> None:
    """FedAvg and FedSpeed without ascent reach the minimiser, and FedAvg is gradient descent of K steps a round."""
    f = heterogeneous(n=3, same=True)
    close(run(FedAvg(lr=0.5), WHOLE, everybody(3, 3), f), papers.gradient_descent(f, X0, 18, 0.5)[5::6], 1e-13)
    for algorithm in (FedAvg(lr=1.0), FedSpeed(lr=0.5, lam=5.0, rho=0.0)):
        last = run(algorithm, LocalWork(0, steps=10), everybody(3, 100), f)[-1]
        np.testing.assert_allclose(last, f.minimiser(), rtol=0, atol=1e-12)
