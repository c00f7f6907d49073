"""Limits of the compressed methods on heterogeneous quadratics: exact, on a floor, or nowhere; and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import DCGD, DIANA, EF14, EF21, EF21BC, L1, MARINA, ECIdeal, EControl, EF21Plus
from algorithms.theory import theory_of, xi
from fedsim.compress import RandK, TopK
from fedsim.errors import DivergenceError
from fedsim.problems import Problem, least_squares, zeta_least_squares
from fedsim.values import Packed, Site
from tests.algorithms.convex import federation_of, last, trajectory

pytestmark = pytest.mark.slow

P = least_squares(10, 20, condition=4.0)
assert P.minimizer is not None
X_STAR = P.minimizer.numpy()
X0 = np.zeros(20)
TOP = TopK(k=4)
GAMMA = 4 * theory_of(EF21(compressor=TOP), P).gamma["nonconvex AM"]
ALPHA = 4 / 20


def error(algorithm: Any, rounds: int, problem: Problem = P) -> float:
    """Distance to the minimiser after so many rounds."""
    return float(np.linalg.norm(last(algorithm, problem, X0, rounds) - np.asarray(problem.minimizer)))


@pytest.mark.parametrize(
    "algorithm",
    [
        EF21(GAMMA, TOP),
        EF21(GAMMA, TOP, start="zero"),
        EF21(GAMMA, TOP, momentum=0.3),
        EF21Plus(GAMMA, TOP),
        EF21BC(GAMMA, TOP, TopK(k=8)),
        EControl(GAMMA, TOP),
        ECIdeal(GAMMA, TOP, tuple(X_STAR)),
        DIANA(GAMMA, RandK(k=8)),
        MARINA(GAMMA, RandK(k=8)),
    ],
    ids=repr,
)
def test_exact_on_heterogeneous_clients(algorithm: Any) -> None:
    assert error(algorithm, 300) < 1e-5


@pytest.mark.parametrize("algorithm", [EF14(GAMMA, TOP), DCGD(GAMMA, TOP), DCGD(GAMMA, RandK(k=8))], ids=repr)
def test_a_floor(algorithm: Any) -> None:
    assert error(algorithm, 300) > 1e-2


def test_the_floor_of_ef14_grows_with_its_step() -> None:
    small, large = (error(EF14(gamma, TOP), 200) for gamma in (GAMMA, 4 * GAMMA))
    assert large > 1.5 * small


def test_ef14_is_exact_on_clients_that_agree() -> None:
    assert error(EF14(GAMMA, TOP), 300, least_squares(10, 20, condition=4.0, heterogeneity=0.0)) < 1e-5


@dataclass(frozen=True)
class Claimed:
    """Rand-k times d / k that passes for contractive."""

    by: RandK = field(default_factory=lambda: RandK(k=2))

    def compress(self, x: Tensor, at: Site) -> Packed:
        return Packed(self, self.by.compress(x, at).parts, x.shape[-1])

    def unpack(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return self.by.unpack(parts, d)

    def nbytes(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return self.by.nbytes(parts, d)

    def paper_bits(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        return self.by.paper_bits(parts, d)

    def alpha(self, d: int) -> float | None:
        return self.by.k / d if self.by.k else None

    def omega(self, d: int) -> float | None:
        return None


def test_ef21_diverges_with_an_unbiased_compressor_that_is_not_scaled() -> None:
    """The reason for the check of its settings."""
    claimed: Any = Claimed()
    try:
        final = error(EF21(GAMMA, claimed), 200)
    except DivergenceError:
        final = np.inf
    assert final > 1e6
    assert error(EF21(GAMMA, RandK(k=2, scaled=False)), 200) < 1


@pytest.mark.parametrize(("factor", "converges"), [(0.5, True), (2.0, True), (4.0, False), (8.0, False)])
@pytest.mark.parametrize("k", [2, 5])
def test_how_much_feedback_econtrol_can_bear(k: int, factor: float, converges: bool) -> None:
    """eta up to 2 alpha converges, from 4 alpha on it diverges."""
    top = TopK(k=k)
    algorithm = EControl(theory_of(EF21(compressor=top), P).gamma["nonconvex"], top, eta=factor * k / 20)
    fed = federation_of(P)
    try:
        states = trajectory(algorithm, P, X0, 400, fed)
    except DivergenceError:
        assert not converges
        return
    e = [max(float(s.mine[i][0].norm()) for i in range(10)) for s in (states[100], states[-1])]
    assert e[1] < e[0] / 2 if converges else e[1] > 1e3 * e[0], "the error is bounded and vanishes, or explodes"


ZETA_FLOORS = {"DCGD": (0.33, 3.1, 24.0), "EF14": (0.030, 0.29, 3.1)}
"""Distances to the minimiser that an independent implementation, with other b_i, ended at for zeta = 1, 10, 100."""


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_floors_of_zeta_least_squares(k: int) -> None:
    """Floors proportional to zeta without a memory of gradients; none with one."""
    top, gamma = TopK(k=10), 1 / (3.85 * (1 + xi(0.1)))
    problem = zeta_least_squares(zeta=10.0**k)
    assert [problem.constants.L_AM, problem.mu] == pytest.approx([3.85, 3.85]), "so distance is ||grad f|| / 3.85"
    x_star = np.asarray(problem.minimizer)

    def distance(algorithm: Any) -> float:
        return float(np.linalg.norm(last(algorithm, problem, np.ones(100), 800) - x_star))

    assert distance(DCGD(gamma, top)) == pytest.approx(ZETA_FLOORS["DCGD"][k], rel=0.2)
    assert distance(EF14(gamma, top)) == pytest.approx(ZETA_FLOORS["EF14"][k], rel=0.2)
    for exact in (EF21(gamma, top), EControl(gamma, top), ECIdeal(gamma, top, tuple(x_star))):
        assert distance(exact) <= 4e-14 * max(1, 10 ** (k - 1)), exact


def test_zeta_least_squares_of_clients_that_agree() -> None:
    top, gamma = TopK(k=10), 1 / (3.85 * (1 + xi(0.1)))
    problem = zeta_least_squares(zeta=0.0)
    for algorithm in (EF14(gamma, top), EF21(gamma, top), EControl(gamma, top)):
        assert np.linalg.norm(last(algorithm, problem, np.ones(100), 800)) <= 4e-14, algorithm


def test_prox_reaches_the_minimiser_of_the_composite_objective() -> None:
    """Where x_j = 0 the gradient is at most lam, elsewhere it cancels lam sign(x_j)."""
    lam = 0.05
    x = torch.from_numpy(last(EF21(GAMMA, TOP, prox=L1(lam)), P, X0, 400))
    g = P.gradient(x)
    zero = x == 0
    assert 0 < int(zero.sum()) < 20
    assert g[zero].abs().max() < lam and (g + lam * torch.sign(x))[~zero].abs().max() < 1e-6
