"""Known numbers of the compressed methods on the example of Beznosikov, Horvath, Richtarik, Safaryan (2020)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from algorithms import DCGD, EF14, EF21, EF21BC, EF21W, ECIdeal, EControl, EF21Plus, with_theory
from algorithms.theory import theory_of
from fedsim.compress import Identity, TopK
from tests.algorithms.convex import BEZNOSIKOV, last, trajectory

pytestmark = pytest.mark.slow

TOP1, GAMMA = TopK(k=1), 0.01
X0 = [1.0, 2.0, 3.0]
ROUNDS = (1, 2, 3, 50)

GOLDEN = {
    "GD": (DCGD(GAMMA, Identity()), """
        1.1483333333 1.9766666667 2.805         1.2674694444 1.9536055556 2.6397416667
        1.3624640787 1.9308134907 2.4991629028  1.1121679781 1.1122493092 1.1123306404"""),
    "DCGD": (DCGD(GAMMA, TOP1), """
        1.1383333333 2.0366666667 2.935         1.2670027778 2.0740055556 2.8810083333
        1.3870714954 2.1120289907 2.8369864861  4.8583476757 4.8615627795 4.8665593044"""),
    "EF14": (EF14(GAMMA, TOP1), """
        1.1383333333 2.0366666667 2.935         1.2075027778 2.0366666667 2.6810166667
        1.1258769769 1.7686618889 2.5914624167  1.1177664462 1.1521527573 1.0839079829"""),
    "EC-Ideal around 0": (ECIdeal(GAMMA, TOP1), """
        1.1383333333 2.0366666667 2.935         1.2075027778 2.0366666667 2.6810166667
        1.1258769769 1.7686618889 2.5914624167  1.1177664462 1.1521527573 1.0839079829"""),
    "EF21": (EF21(GAMMA, TOP1), """
        1.1483333333 1.9766666667 2.805         1.2787861111 1.9533333333 2.6276611111
        1.387690838 1.9291356667 2.473267713    1.1044201346 1.1040092704 1.1040437201"""),
    "EF21-W": (EF21W(GAMMA, TOP1, smoothness=(0.2, 0.3, 0.5)), """
        1.1483333333 1.9766666667 2.805         1.2787861111 1.9533333333 2.6276611111
        1.387690838 1.9291356667 2.473267713    1.1044201346 1.1040092704 1.1040437201"""),
    "EF21 compressed start": (EF21(GAMMA, TOP1, start="compressed"), """
        1.1383333333 2.0366666667 2.935         1.3075027778 2.0733333333 2.7460166667
        1.4493325324 2.0303285556 2.5879290833  1.1474596747 1.1474600433 1.1479722792"""),
    "EF21+": (EF21Plus(GAMMA, TOP1), """
        1.1483333333 1.9766666667 2.805         1.2787861111 1.9533333333 2.6276611111
        1.3709055556 1.892469 2.4884883889      1.0920247379 1.0920685194 1.0918711639"""),
    "EF21-HB": (EF21(GAMMA, TOP1, momentum=0.5), """
        1.1483333333 1.9766666667 2.805         1.3529527778 1.9416666667 2.5301611111
        1.5584769491 1.8997551111 2.2443885463  .5947844043 .5947995644 .5949421658"""),
    "EF21-BC": (EF21BC(GAMMA, TOP1, TOP1), """
        1.1483333333 1.9766666667 2.805         1.2787861111 1.9533333333 2.61
        1.4092388889 1.93 2.456107              1.0961896216 1.0924782723 1.0942927946"""),
    "EControl": (EControl(GAMMA, TOP1, eta=0.1), """
        1.1483333333 1.9766666667 2.805         1.2787861111 1.9533333333 2.6276611111
        1.3865527824 1.9290928889 2.4744757685  1.1090748976 1.1110866125 1.1131131936"""),
}  # fmt: skip
"""Models after rounds 1, 2, 3 and 50 to ten digits, from a separate implementation."""


@pytest.mark.parametrize("case", GOLDEN)
def test_ten_digits(case: str) -> None:
    algorithm, digits = GOLDEN[case]
    states = trajectory(algorithm, BEZNOSIKOV, X0, 50)
    expected = np.array(digits.split(), float).reshape(4, 3)
    np.testing.assert_allclose([states[t].x.numpy() for t in ROUNDS], expected, rtol=0, atol=5.1e-11)


def test_a_zero_start_is_the_compressed_one_a_step_later() -> None:
    zero = trajectory(EF21(GAMMA, TOP1, start="zero"), BEZNOSIKOV, X0, 20)
    compressed = trajectory(EF21(GAMMA, TOP1, start="compressed"), BEZNOSIKOV, X0, 19)
    for late, early in zip(zero[1:], compressed, strict=True):
        np.testing.assert_allclose(late.x, early.x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.001, 0.01, 0.1])
def test_compressed_gradients_alone_grow_by_a_known_factor(gamma: float) -> None:
    """Top-1 sends the one coordinate whose step points away from the minimiser, for every step size."""
    for t, state in enumerate(trajectory(DCGD(gamma, TOP1), BEZNOSIKOV, [2.0] * 3, 40)):
        np.testing.assert_allclose(state.x, 2 * (1 + 11 * gamma / 6) ** t, rtol=1e-13)


@pytest.mark.parametrize("algorithm", [EF14(0.04, TOP1), with_theory(EF21(compressor=TOP1), BEZNOSIKOV, 8, "PL")])
def test_feedback_repairs_it(algorithm: Any) -> None:
    """Every client is at rest at the minimiser 0, so that EF14 is exact as well."""
    assert np.linalg.norm(last(algorithm, BEZNOSIKOV, [1.0] * 3, 300)) < 1e-4


def test_the_step_size_of_this_example() -> None:
    theory = theory_of(EF21(compressor=TOP1), BEZNOSIKOV)
    assert float(f"{theory.gamma['PL']:.5e}") == 4.26878e-3
    assert with_theory(EF21(compressor=TOP1), BEZNOSIKOV, 8, "PL").lr == 8 * theory.gamma["PL"]
