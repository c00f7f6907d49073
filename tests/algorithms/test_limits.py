"""Limits of the methods: at the minimiser where theory says so, at a known other point, or on a floor."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from algorithms import FedAMD, FedAvg, FedCM, FedOpt, FedProx, FedSpeed, Scaffold
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import LocalWork
from tests.algorithms.quadratics import everybody, federation, heterogeneous, iterates, some

pytestmark = pytest.mark.slow

F = heterogeneous()
X_STAR = F.minimiser()
X0 = np.zeros(F.d)
FEW, STEPS = heterogeneous(n=4, d=8), 5


def errors(algorithm: Any, cohorts: list[list[int]], steps: int = 10) -> np.ndarray:
    """``||x - x*|| / ||x*||`` after each round of whole-shard steps."""
    fed = federation(F, LocalWork(0, steps=steps), Blocks(10) if len(cohorts[0]) > 2 else None)
    x = np.array(iterates(algorithm, fed, X0, cohorts))
    return np.linalg.norm(x - X_STAR, axis=1) / np.linalg.norm(X_STAR)


def limit(algorithm: Any, rounds: int) -> np.ndarray:
    """The model on the smaller problem after so many rounds with everybody, which moved no more."""
    fed = federation(FEW, LocalWork(0, steps=STEPS))
    *_, before, last = iterates(algorithm, fed, np.zeros(FEW.d), everybody(FEW.n, rounds))
    assert np.abs(last - before).max() < 1e-12
    return last


EXACT = {
    "SCAFFOLD II, everybody": (Scaffold(lr=0.3), everybody(10, 60), 10),
    "SCAFFOLD I, everybody": (Scaffold(lr=0.3, option="I"), everybody(10, 40), 10),
    "SCAFFOLD II, 2 of 10": (Scaffold(lr=0.3), some(10, 2, 320), 5),
    "SCAFFOLD I, 2 of 10": (Scaffold(lr=0.3, option="I"), some(10, 2, 320), 5),
    "FedSpeed, everybody": (FedSpeed(lr=0.3, lam=3.0, rho=0.0), everybody(10, 80), 10),
    "FedSpeed, paper's rule, everybody": (FedSpeed(lr=0.3, lam=3.0, rho=0.0, dual_avg="active"), everybody(10, 80), 10),
    "FedSpeed, 2 of 10": (FedSpeed(lr=0.3, lam=3.0, rho=0.0), some(10, 2, 450), 10),
    "FedAMD, everybody": (FedAMD(lr=0.1, p=0.5), everybody(10, 160), 10),
    "FedAMD, 2 of 10": (FedAMD(lr=0.1, p=0.5), some(10, 2, 900), 5),
    "FedAMD in sequence, 2 of 10": (FedAMD(lr=0.1, period=2), some(10, 2, 700), 10),
}


@pytest.mark.parametrize("case", EXACT)
def test_reaches_the_minimiser_with_constant_steps(case: str) -> None:
    assert errors(*EXACT[case])[-5:].max() < 1e-10


def test_stochastic_miners_reach_it_as_well() -> None:
    """Anchors are exact, and the miners' noise vanishes with their steps."""
    fed = federation(F, LocalWork(batch_size=8, steps=5))
    last = iterates(FedAMD(lr=0.1, p=0.5), fed, X0, some(10, 2, 900))[-1]
    assert np.linalg.norm(last - X_STAR) / np.linalg.norm(X_STAR) < 1e-8


FLOORS = {
    "FedAvg, everybody": (FedAvg(lr=0.3), everybody(10, 60), 1e-1),
    "FedAvg, 2 of 10": (FedAvg(lr=0.3), some(10, 2, 200), 1e-1),
    "FedSpeed, paper's rule, 2 of 10": (FedSpeed(lr=0.3, lam=3.0, rho=0.0, dual_avg="active"), some(10, 2, 200), 1e-1),
    "FedSpeed, everybody, with ascent": (FedSpeed(lr=0.3, lam=3.0, rho=0.5), everybody(10, 80), 1e-2),
    "FedAMD, anchors only": (FedAMD(p=1.0), everybody(10, 30), 1e-1),
}


@pytest.mark.parametrize("case", FLOORS)
def test_stays_above_a_floor(case: str) -> None:
    algorithm, cohorts, floor = FLOORS[case]
    assert errors(algorithm, cohorts)[len(cohorts) // 2 :].min() > floor


@pytest.mark.parametrize(
    "algorithm",
    [Scaffold(lr=0.3), Scaffold(lr=0.3, option="I"), FedSpeed(lr=0.3, lam=3.0, rho=0.0), FedAMD(lr=0.1, p=0.5)],
)
@pytest.mark.parametrize("size", [4, 1], ids=["everybody", "1 of 4"])
def test_weighted_clients_reach_the_minimiser_of_the_weighted_objective(algorithm: Any, size: int) -> None:
    """sum_i p_i f_i, with p_i far from uniform: server variables are weighted means too, whoever takes part."""
    weights = np.array([1.0, 2.0, 3.0, 6.0])
    H = sum(w * FEW.H(i) for i, w in enumerate(weights))
    weighted_minimiser = np.linalg.solve(H, sum(w * FEW.H(i) @ FEW.own_minimiser(i) for i, w in enumerate(weights)))
    cohorts = everybody(4, 100) if size == 4 else some(4, 1, 900)
    small = algorithm if size == 4 else type(algorithm)(**{**vars(algorithm), "lr": 0.1})
    last = iterates(small, federation(FEW, LocalWork(0, steps=5), weights=weights), np.zeros(8), cohorts)[-1]
    assert np.linalg.norm(last - weighted_minimiser) < 1e-6
    assert np.linalg.norm(weighted_minimiser - FEW.minimiser()) > 1e-2


def fedavg_fixed_point(eta: float) -> np.ndarray:
    """Solves ``sum_i (I - M_i)(x - x_i*) = 0`` with ``M_i = (I - eta H_i)^K``."""
    pull = [np.eye(FEW.d) - np.linalg.matrix_power(np.eye(FEW.d) - eta * FEW.H(i), STEPS) for i in range(FEW.n)]
    return np.linalg.solve(sum(pull), sum(pull[i] @ FEW.own_minimiser(i) for i in range(FEW.n)))


@pytest.mark.parametrize(("eta", "rounds"), [(1.0, 40), (0.5, 80)])
def test_fedavg_ends_at_its_closed_form_fixed_point(eta: float, rounds: int) -> None:
    fixed = fedavg_fixed_point(eta)
    np.testing.assert_allclose(limit(FedAvg(lr=eta), rounds), fixed, rtol=0, atol=1e-10)
    slowly = limit(FedAvg(lr=eta, server_lr=0.6), 2 * rounds)                # the server's step moves no fixed point
    np.testing.assert_allclose(slowly, fixed, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mu", "rounds"), [(0.1, 80), (1.0, 190)])
def test_fedprox_ends_at_its_closed_form_fixed_point(mu: float, rounds: int) -> None:
    """Client i goes the share I - (I - eta (H_i + mu I))^K of the way to (H_i + mu I)^-1 (H_i x_i* + mu x)."""
    eta, eye, pull = 0.5, np.eye(FEW.d), []
    for i in range(FEW.n):
        A = FEW.H(i) + mu * eye
        pull.append((eye - np.linalg.matrix_power(eye - eta * A, STEPS)) @ np.linalg.solve(A, FEW.H(i)))
    fixed = np.linalg.solve(sum(pull), sum(pull[i] @ FEW.own_minimiser(i) for i in range(FEW.n)))
    np.testing.assert_allclose(limit(FedProx(lr=eta, mu=mu), rounds), fixed, rtol=0, atol=1e-10)
    assert np.linalg.norm(fixed - FEW.minimiser()) > 1e-3


@pytest.mark.parametrize("optimizer", ["adam", "yogi", "adagrad"])
def test_fedopt_ends_where_fedavg_does(optimizer: Any) -> None:
    """Where Delta is 0; tau must be large enough for server_lr / tau to be no longer a step than FedAvg can make."""
    algorithm = FedOpt(lr=0.5, server_lr=0.5, optimizer=optimizer, beta1=0.5, tau=0.3)
    np.testing.assert_allclose(limit(algorithm, 200), fedavg_fixed_point(0.5), rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_fedcm_ends_where_fedavg_with_a_shorter_step_does(alpha: float) -> None:
    x = limit(FedCM(lr=0.5, alpha=alpha), 200)
    np.testing.assert_allclose(x, fedavg_fixed_point(alpha * 0.5), rtol=0, atol=1e-10)
    assert np.linalg.norm(x - fedavg_fixed_point(0.5)) > 1e-2


def test_the_bias_of_fedavg_shrinks_with_its_step() -> None:
    """In the closed form, which is proved above: proportional to the step once it is small."""
    biases = [np.linalg.norm(fedavg_fixed_point(eta) - FEW.minimiser()) for eta in (1, 0.3, 0.1, 1e-3, 5e-4)]
    assert all(a > 1.2 * b for a, b in pairwise(biases))
    assert biases[-2] / biases[-1] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(("alpha", "rho"), [(1.0, 0.5), (0.5, 0.5), (0.5, 1.0)])
def test_plain_ascent_ends_where_the_perturbed_gradients_cancel(alpha: float, rho: float) -> None:
    """``sum_i (I + alpha rho H_i) grad f_i(x) = 0``: it depends on the product alpha rho alone."""
    tilted = [(np.eye(FEW.d) + alpha * rho * FEW.H(i)) @ FEW.H(i) for i in range(FEW.n)]
    predicted = np.linalg.solve(sum(tilted), sum(tilted[i] @ FEW.own_minimiser(i) for i in range(FEW.n)))
    x = limit(FedSpeed(lr=0.5, lam=3.0, rho=rho, alpha=alpha, normalize=False), 170)
    np.testing.assert_allclose(x, predicted, rtol=0, atol=1e-10)
    assert np.linalg.norm(predicted - FEW.minimiser()) > 1e-2


def test_normalised_ascent_ends_where_the_gradients_after_the_ascent_cancel() -> None:
    rho = 0.3
    x = limit(FedSpeed(lr=0.5, lam=3.0, rho=rho), 170)
    g = [FEW.grad(i, x) for i in range(FEW.n)]
    total = sum(FEW.grad(i, x + rho * g[i] / np.linalg.norm(g[i])) for i in range(FEW.n))
    np.testing.assert_allclose(total, 0, atol=1e-10)
    assert np.linalg.norm(sum(g)) > 1e-2
