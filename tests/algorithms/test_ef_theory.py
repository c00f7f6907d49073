"""Step sizes in theory by hand, and the checks of the compressed methods' settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from algorithms import (
    DCGD,
    DIANA,
    EF14,
    EF21,
    EF21BC,
    EF21PAGE,
    EF21SGDM,
    EF21W,
    L1,
    MARINA,
    ECIdeal,
    EControl,
    EF21Plus,
    FedAvg,
    with_theory,
)
from algorithms.ef21 import ef21_theory
from algorithms.theory import beta, theta, xi
from fedsim.backends.loop import Loop
from fedsim.compress import QSGD, Identity, Natural, RandK, Scaled, TopK
from fedsim.errors import ConfigError
from fedsim.problems import Constants, least_squares, logistic_regression, quadratic_from
from fedsim.work import LocalWork
from tests.algorithms.convex import federation_of, trajectory
from tests.algorithms.quadratics import federation, heterogeneous, states

C = Constants(L=2.0, L_i=(1.0, 1.0, 1.0, 100.0), d=10, mu=0.5)
TOP1 = TopK(k=1)


@pytest.mark.parametrize(("alpha", "value"), [(1, 0), (0.5, 2.4142), (0.25, 6.4641), (0.1, 18.4868), (0.01, 198.4987)])
def test_xi(alpha: float, value: float) -> None:
    assert round(xi(alpha), 4) == value
    assert xi(alpha) == pytest.approx(math.sqrt(beta(alpha) / theta(alpha)), rel=1e-12)


def test_constants() -> None:
    assert (C.n, C.L_AM, C.L_max) == (4, 25.75, 100)
    assert [C.L_QM, C.L_var] == pytest.approx([math.sqrt(10003 / 4), 10003 / 4 - 25.75**2])
    P = least_squares(5, 8)
    assert (P.constants.L, P.constants.mu, P.constants.d, P.constants.n) == (P.smoothness, P.mu, 8, 5)
    np.testing.assert_array_equal(P.constants.L_i, P.local_smoothness)


def test_ef21() -> None:
    theory = EF21(compressor=TOP1).theory(C)
    assert theory.gamma["nonconvex"] == pytest.approx(1 / (2 + C.L_QM * 18.486833), rel=1e-7)
    assert theory.gamma["nonconvex AM"] == pytest.approx(1 / (2 + 25.75 * 18.486833), rel=1e-7)
    assert theory.gamma["PL"] == pytest.approx(1 / (2 + math.sqrt(2) * C.L_QM * 18.486833), rel=1e-7)
    assert theory.gamma["PL AM"] == pytest.approx(1 / (2 + math.sqrt(2) * 25.75 * 18.486833), rel=1e-7)
    assert EF21(compressor=TOP1).theory(Constants(1e-3, (1e-3,), 10, 1.0)).gamma["PL"] == pytest.approx(theta(0.1) / 2)
    assert theory.constants["alpha"] == 0.1 and theory.constants["L_var"] == C.L_var
    assert EF21Plus(compressor=TOP1).theory(C) == theory
    weighted = EF21W(compressor=TOP1).theory(C).gamma
    assert weighted == {"nonconvex": theory.gamma["nonconvex AM"], "PL": theory.gamma["PL AM"]}


def test_the_gain_of_the_arithmetic_mean() -> None:
    gamma = EF21(compressor=TopK(k=1)).theory(Constants(25.75, C.L_i, 20)).gamma
    assert round(gamma["nonconvex AM"] / gamma["nonconvex"], 2) == 1.92


def test_partial_participation() -> None:
    """s = rho = 1e-3, as published code has it, gives 0.00358; s of full participation with rho that halves p theta
    0.01045; the best of a grid 0.01282.
    """

    def gamma(s: float, rho: float, p: float = 0.5, alpha: float = 0.1) -> float:
        th, be = 1 - (1 + s) * (1 - alpha), (1 + 1 / s) * (1 - alpha)
        theta_p, B = p * th - rho * (1 - p), (be * p + (1 + 1 / rho) * (1 - p)) * 2.0**2
        return 1 / (1 + math.sqrt(B / theta_p)) if theta_p > 0 else 0.0

    task = Constants(1.0, (2.0, 2.0), 10)
    theory = EF21(compressor=TOP1).theory(task, participation=0.5)
    best = theory.gamma["nonconvex"]
    assert best == pytest.approx(gamma(theory.constants["s"], theory.constants["rho"]))
    assert round(gamma(1e-3, 1e-3), 5) == 0.00358
    assert round(gamma(1 / math.sqrt(0.9) - 1, theta(0.1) / 2), 5) == 0.01045
    grid = [gamma(s, rho) for s in np.geomspace(1e-3, 0.11, 60) for rho in np.geomspace(1e-4, 0.1, 60)]
    assert max(grid) <= best <= 1.003 * max(grid) and round(best, 4) == 0.0128
    almost = EF21(compressor=TOP1).theory(task, participation=1 - 1e-9).gamma["nonconvex"]
    assert almost == pytest.approx(EF21(compressor=TOP1).theory(task).gamma["nonconvex"], rel=1e-3)
    dense = EF21(compressor=Identity()).theory(task, participation=0.5).gamma["nonconvex"]
    assert 5 * best < dense < 1


def test_rare_features() -> None:
    """Clients that share no coordinate: c = 1, and the cost of compression falls by n."""
    hessians = np.array([np.diag([1.0, 2.0, 0, 0]), np.diag([0, 0, 3.0, 4.0])])
    task = quadratic_from(hessians, np.zeros((2, 4))).constants
    assert task.sharing == 1
    theory = EF21(compressor=TOP1).theory(task)
    plus = min(task.L_QM, math.sqrt(1 / 2) * 4)
    assert theory.gamma["rare"] == pytest.approx(1 / (2 + plus * xi(0.25) * math.sqrt(1 / 2)))
    assert theory.gamma["rare"] > theory.gamma["nonconvex"]
    assert least_squares(3, 4).constants.sharing == 3
    rows = np.kron(np.eye(2), np.ones((5, 2)))
    assert logistic_regression((rows, np.arange(10) % 2), n=2).constants.sharing == 2, "the penalty is everybody's"
    assert EF21(compressor=TOP1).theory(C).gamma["rare"] == EF21(compressor=TOP1).theory(C).gamma["nonconvex"]


def test_bidirectional() -> None:
    dense = EF21BC(compressor=TOP1, server_compressor=Identity()).theory(C).gamma["nonconvex"]
    assert dense == pytest.approx(1 / (2 + C.L_QM * math.sqrt(2) * xi(0.1)))
    both = EF21BC(compressor=TOP1, server_compressor=TopK(k=5)).theory(C)
    down = 8 * beta(0.5) / theta(0.5)
    A = (1 + down) / theta(0.1)
    assert both.gamma["nonconvex"] == pytest.approx(1 / (2 + C.L_QM * math.sqrt(2 * (A * beta(0.1) + down))))


def test_unbiased_methods() -> None:
    rand = RandK(k=2)                                      # omega = 4
    assert DCGD(compressor=rand).theory(C).gamma["convex"] == pytest.approx(1 / (2 + 2 * 100 * 4 / 4))
    assert DCGD(compressor=Identity()).theory(C).gamma["convex"] == 1 / 2, "gradient descent"
    diana = DIANA(compressor=rand).theory(C).gamma
    assert diana["nonconvex"] == pytest.approx(1 / (10 * 2 * math.sqrt(2) * 6))
    assert diana["convex"] == pytest.approx(1 / (100 * 7))
    marina = MARINA(compressor=rand).theory(C)
    assert marina.constants["p"] == pytest.approx(0.2)
    assert marina.gamma["nonconvex"] == pytest.approx(1 / (C.L_QM * (1 + 4 / math.sqrt(4)))), "1 + omega / sqrt(n)"
    some = MARINA(compressor=rand).theory(C, participation=0.5)
    assert some.constants["p"] == pytest.approx(0.1)
    assert some.gamma["nonconvex"] == pytest.approx(1 / (C.L_QM * (1 + math.sqrt(0.9 * 5 / (0.1 * 2)))))


def test_an_algorithm_with_a_step_size_of_its_theory() -> None:
    P = least_squares(5, 8)
    algorithm = EF21(compressor=TOP1, momentum=0.5)
    assert with_theory(algorithm, P, 16).lr == 16 * algorithm.theory(P).gamma["nonconvex"]
    assert with_theory(algorithm, P, regime="PL AM").lr == algorithm.theory(P).gamma["PL AM"]
    assert with_theory(algorithm, P.constants, participation=0.5).momentum == 0.5
    assert with_theory(DCGD(compressor=Identity()), P).lr == pytest.approx(1 / P.smoothness)


def test_theory_of_a_task_that_nobody_knows() -> None:
    algorithm: Any = EF21(compressor=TOP1)
    with pytest.raises(ConfigError, match=r"theory was asked of str 'digits', whose smoothness constants L and L_i"):
        with_theory(algorithm, "digits")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"EF21 has no step size for the regime 'PL' here; it has .*mu > 0"):
        with_theory(algorithm, Constants(1.0, (1.0,), 10), regime="PL")
    with pytest.raises(ConfigError, match="no step size in theory is known to FedAvg"):
        with_theory(FedAvg(), C)
    with pytest.raises(ConfigError, match="participation is 0; expected a share above 0 and at most 1"):
        with_theory(algorithm, C, participation=0)
    with pytest.raises(ConfigError, match=r"theory needs omega of TopK\(.*which is biased"):
        with_theory(DCGD(), C)
    with pytest.raises(ConfigError, match=r"theory needs alpha of QSGD\(.*not known to be contractive; use Scaled"):
        ef21_theory(QSGD(), C)


@pytest.mark.parametrize("cls", [EF14, EF21, EF21Plus, EF21W, EF21BC, EF21SGDM, EF21PAGE, EControl, ECIdeal])
@pytest.mark.parametrize("by", [RandK(k=2), QSGD(), Natural()], ids=["RandK", "QSGD", "Natural"])
def test_unbiased_compressors_must_be_scaled_for_error_feedback(cls: Any, by: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__}.compressor is {type(by).__name__}.*Scaled\("):
        cls(compressor=by)
    assert cls(compressor=Scaled(by)).compressor.alpha(10) == 1 / (1 + by.omega(10))
    assert cls(compressor=RandK(k=2, scaled=False))


@pytest.mark.parametrize("cls", [DIANA, MARINA])
def test_biased_compressors_are_refused_where_they_must_not_be(cls: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__}.compressor is TopK.*which is biased; expected an unbiased"):
        cls(compressor=TopK(k=2))


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (DCGD, {"lr": 0.0}, "DCGD.lr is 0.0"),
        (DCGD, {"gradient": "half"}, "DCGD.gradient is 'half'; expected one of 'full', 'minibatch'"),
        (EF14, {"lr": -1.0}, "EF14.lr is -1.0"),
        (EF21, {"start": "warm"}, "EF21.start is 'warm'; expected one of 'dense', 'compressed', 'zero'"),
        (EF21, {"momentum": 1.0}, "EF21.momentum is 1.0"),
        (L1, {"lam": 0.0}, "L1.lam is 0.0"),
        (EF21W, {"smoothness": (1.0, 0.0)}, "EF21W.smoothness is .*; expected finite numbers above 0"),
        (EF21BC, {"server_compressor": QSGD()}, "EF21BC.server_compressor is QSGD"),
        (EF21SGDM, {"eta": 0.0}, "EF21SGDM.eta is 0.0"),
        (EF21SGDM, {"eta": 1.5}, "EF21SGDM.eta is 1.5"),
        (EF21SGDM, {"momenta": 0}, "EF21SGDM.momenta is 0"),
        (EF21SGDM, {"first_batch": -1}, "EF21SGDM.first_batch is -1"),
        (EF21PAGE, {"p": 0.0}, "EF21PAGE.p is 0.0"),
        (EControl, {"eta": -0.1}, "EControl.eta is -0.1"),
        (DIANA, {"alpha": 0.0}, "DIANA.alpha is 0.0"),
        (MARINA, {"p": 1.5}, "MARINA.p is 1.5"),
    ],
)
def test_settings_out_of_range(cls: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**settings)


def test_settings_that_do_not_fit_the_task() -> None:
    P = least_squares(5, 8)
    with pytest.raises(ConfigError, match=r"EF21W.smoothness has 2 entries; expected one for each of 5 clients"):
        trajectory(EF21W(compressor=TOP1, smoothness=(1.0, 2.0)), P, np.zeros(8), 0)
    with pytest.raises(ConfigError, match=r"ECIdeal.minimizer has 1 coordinates; expected 8"):
        trajectory(ECIdeal(compressor=TOP1, minimizer=(1.0,)), P, np.zeros(8), 0)
    with pytest.raises(ConfigError, match="k is 9, but the vector has 8 coordinates"):
        trajectory(EF21(compressor=TopK(k=9)), P, np.zeros(8), 1, federation_of(P, Loop()))
    fed = federation(heterogeneous(), LocalWork(0, steps=1))
    with pytest.raises(ConfigError, match="EF21BC needs every client in every round, 3 of 10 take part"):
        states(EF21BC(), fed, np.zeros(20), [[0, 1, 2]])
