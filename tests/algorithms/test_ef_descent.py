"""Descent at the step sizes of theory, on quadratics of very unequal clients: what the theorems say falls, falls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import EF14, EF21, EF21BC, EF21PAGE, EF21SGDM, EControl, with_theory
from algorithms.theory import theory_of
from fedsim.compress import TopK
from fedsim.engine.local_work import LocalWork
from fedsim.problems import Problem, least_squares, quadratic_from
from tests.algorithms.convex import federation_of, trajectory

pytestmark = pytest.mark.slow

X0 = np.zeros(20)
TOP = TopK(k=2)


def spread(problem: Problem) -> Problem:
    """Clients of very different smoothness: client i's rows times i."""
    train = problem.dataset.train
    assert train.client is not None
    hessians, linear = [], []
    for i in range(problem.n):
        rows, targets = train.x[train.client == i].numpy(), train.y[train.client == i].numpy()
        hessians.append((i + 1) ** 1.5 * rows.T @ rows / len(rows))
        linear.append((i + 1) ** 1.5 * rows.T @ targets / len(rows))
    return quadratic_from(np.array(hessians), np.array(linear))


P = spread(least_squares(10, 20, condition=4.0))
K = P.constants


def gap(x: Tensor) -> float:
    """f(x) - f*."""
    return float(P.value(x)) - (P.f_min or 0)


def square(v: Tensor) -> float:
    """||v||^2."""
    return float(v.square().sum())


def mean_square(rows: list[Tensor]) -> float:
    """Mean of ||v_i||^2."""
    return float(np.mean([square(v) for v in rows]))


def gradients(x: Tensor) -> list[Tensor]:
    """The clients' gradients."""
    return [P.client_gradient(i, x) for i in range(P.n)]


@pytest.mark.parametrize(("mean", "slowest"), [("PL", 0.9975), ("PL AM", 0.9955)])
def test_ef21_by_its_factor(mean: str, slowest: float) -> None:
    """Psi = f - f* + (gamma / theta) G, with G weighted by L_AM / L_i for the arithmetic mean: at most 1 - gamma mu."""
    algorithm = with_theory(EF21(compressor=TOP), P, regime=mean)
    theta = theory_of(EF21(compressor=TOP), P).constants["theta"]
    weight = np.sqrt(K.L_AM / np.array(K.L_i)) if mean == "PL AM" else np.ones(10)
    psi = []
    for s in trajectory(algorithm, P, X0, 60):
        errors = [w * (s.g_i[i] - g) for i, (w, g) in enumerate(zip(weight, gradients(s.x), strict=True))]
        psi.append(gap(s.x) + algorithm.lr / theta * mean_square(errors))
    ratios = np.array(psi[1:]) / psi[:-1]
    assert ratios.max() <= 1 - algorithm.lr * K.mu
    assert ratios.max() < slowest


@pytest.mark.parametrize("eta", [0.3, 0.9])
def test_heavy_ball(eta: float) -> None:
    """Psi = f(z) - f* + a G + b ||v_old||^2 falls by gamma / (1 - eta) ||grad f(z)||^2 / 2 in each round."""
    algorithm = with_theory(EF21(compressor=TOP, momentum=eta), P)
    c, gamma = theory_of(EF21(compressor=TOP), P).constants, algorithm.lr / (1 - eta)
    compressed, behind = K.L_QM * c["xi"], K.L * eta / (1 - eta)
    a = gamma * (1 + behind / compressed) / (2 * c["theta"])
    first = a * c["beta"] * (K.L_QM * algorithm.lr) ** 2
    second = gamma / 2 * (1 + compressed / behind) * (behind * algorithm.lr) ** 2
    b = (second + eta * first) / (1 - eta)
    psi, slopes = [], []
    for s in trajectory(algorithm, P, X0, 100):
        old = (s.v - s.g) / eta
        z = s.x - gamma * eta * old
        errors = [s.g_i[i] - g for i, g in enumerate(gradients(s.x))]
        psi.append(gap(z) + a * mean_square(errors) + b * square(old))
        slopes.append(square(P.gradient(z)))
    assert (np.diff(psi) <= -gamma / 2 * np.array(slopes[:-1]) + 1e-12).all()


@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_sgdm(eta: float) -> None:
    """Psi = f - f* + a G + b ||v - grad f||^2 + c mean ||v_i - grad f_i||^2 falls by gamma ||grad f||^2 / 2."""
    algorithm = with_theory(EF21SGDM(compressor=TOP, eta=eta), P)
    t = theory_of(EF21(compressor=TOP), P).constants
    compressed, lag, gamma = K.L_QM * t["xi"], K.L * (1 - eta) / eta, algorithm.lr
    a = gamma * (1 + lag / compressed) / (2 * t["theta"])
    b = gamma * (1 + compressed / lag) / (2 * eta)
    c = a * t["beta"] * eta / (1 - eta)
    psi, slopes = [], []
    for s in trajectory(algorithm, P, X0, 100):
        v, g_i = zip(*(s.mine[i] for i in range(10)), strict=True)
        lags = [p - q for p, q in zip(v, gradients(s.x), strict=True)]
        errors = [p - q for p, q in zip(g_i, v, strict=True)]
        mean_lag = torch.stack(lags).mean(0)
        psi.append(gap(s.x) + a * mean_square(errors) + b * square(mean_lag) + c * mean_square(lags))
        slopes.append(square(P.gradient(s.x)))
    assert (np.diff(psi) <= -gamma / 2 * np.array(slopes[:-1]) + 1e-12).all()


def test_ef14_down_to_its_floor() -> None:
    """Psi = f(z) - f* + a mean ||e_i||^2 falls by gamma ||grad f(z)||^2 / 2, up to a multiple of zeta^2."""
    algorithm = with_theory(EF14(compressor=TOP), P)
    t = theory_of(EF21(compressor=TOP), P).constants
    gamma = algorithm.lr
    a = gamma * K.L**2 / (2 * t["theta"])
    psi, slopes, floors = [], [], []
    for s in trajectory(algorithm, P, X0, 100):
        e = [s.e_i[i] for i in range(10)]
        z, exact = s.x - torch.stack(e).mean(0), gradients(s.x)
        f = torch.stack(exact).mean(0)
        psi.append(gap(z) + a * mean_square(e))
        slopes.append(square(P.gradient(z)))
        floors.append(mean_square([g - f for g in exact]))
    falls = gamma / 2 * np.array(slopes[:-1]) - a * t["beta"] * gamma**2 * np.array(floors[:-1])
    assert (np.diff(psi) <= -falls + 1e-12).all()


@pytest.mark.parametrize(
    "algorithm",
    [
        EF21SGDM(compressor=TopK(k=5), eta=0.3, momenta=2),
        EF21BC(compressor=TopK(k=5), server_compressor=TopK(k=15)),
        EControl(compressor=TopK(k=5), eta=0.25 / 400),
        EControl(compressor=TopK(k=5), eta=0.1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("mean", ["nonconvex", "nonconvex AM"])
def test_the_gradients_sum_up_to_little(algorithm: Any, mean: str) -> None:
    """sum_t ||grad f(x^t)||^2 <= 2 (f(x^0) - f*) / gamma, however long; here until most of f is gone."""
    algorithm = with_theory(algorithm, P, regime=mean)
    x = [s.x for s in trajectory(algorithm, P, X0, math.ceil(4 / (algorithm.lr * K.L)))]
    assert sum(square(P.gradient(v)) for v in x[:-1]) <= 2 * gap(x[0]) / algorithm.lr
    assert gap(x[-1]) < gap(x[0]) / 2


def test_page_on_average() -> None:
    """The same in expectation, over the seeds of coins and samples."""
    algorithm: Any = with_theory(EF21PAGE(compressor=TopK(k=5), p=0.3), P, tau=10)
    sums = []
    for seed in range(3):
        fed = federation_of(P, work=LocalWork(batch_size=10, steps=1), seed=seed)
        x = [s.x for s in trajectory(algorithm, P, X0, math.ceil(4 / (algorithm.lr * K.L)), fed)]
        sums.append(sum(square(P.gradient(v)) for v in x[:-1]))
        assert gap(x[-1]) < gap(x[0]) / 2
    assert np.mean(sums) <= 2 * gap(x[0]) / algorithm.lr
