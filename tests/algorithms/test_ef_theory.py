"""Step sizes in theory by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

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
    ChocoSGD,
    EControl,
    EF21Plus,
    FedAvg,
    with_theory,
)
from algorithms.theory import beta, theory_of, theta, xi
from fedsim.compress import Identity, RandK, Threshold, TopK
from fedsim.errors import ConfigError
from fedsim.problems import Constants, least_squares, logistic_regression, quadratic_from

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
    theory = theory_of(EF21(compressor=TOP1), C)
    assert theory.gamma["nonconvex"] == pytest.approx(1 / (2 + C.L_QM * 18.486833), rel=1e-7)
    assert theory.gamma["nonconvex AM"] == pytest.approx(1 / (2 + 25.75 * 18.486833), rel=1e-7)
    assert theory.gamma["PL"] == pytest.approx(1 / (2 + math.sqrt(2) * C.L_QM * 18.486833), rel=1e-7)
    assert theory.gamma["PL AM"] == pytest.approx(1 / (2 + math.sqrt(2) * 25.75 * 18.486833), rel=1e-7)
    smooth = Constants(1e-3, (1e-3,), 10, 1.0)
    assert theory_of(EF21(compressor=TOP1), smooth).gamma["PL"] == pytest.approx(theta(0.1) / 2)
    assert theory.constants["alpha"] == 0.1 and theory.constants["L_var"] == C.L_var
    assert theory_of(EF21Plus(compressor=TOP1), C) == theory
    weighted = theory_of(EF21W(compressor=TOP1), C).gamma
    assert weighted == {"nonconvex": theory.gamma["nonconvex AM"], "PL": theory.gamma["PL AM"]}


def test_the_gain_of_the_arithmetic_mean() -> None:
    gamma = theory_of(EF21(compressor=TopK(k=1)), Constants(25.75, C.L_i, 20)).gamma
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
    theory = theory_of(EF21(compressor=TOP1), task, participation=0.5)
    best = theory.gamma["nonconvex"]
    assert best == pytest.approx(gamma(theory.constants["s"], theory.constants["rho"]))
    assert round(gamma(1e-3, 1e-3), 5) == 0.00358
    assert round(gamma(1 / math.sqrt(0.9) - 1, theta(0.1) / 2), 5) == 0.01045
    grid = [gamma(s, rho) for s in np.geomspace(1e-3, 0.11, 60) for rho in np.geomspace(1e-4, 0.1, 60)]
    assert max(grid) <= best <= 1.003 * max(grid) and round(best, 4) == 0.0128
    almost = theory_of(EF21(compressor=TOP1), task, participation=1 - 1e-9).gamma["nonconvex"]
    assert almost == pytest.approx(theory_of(EF21(compressor=TOP1), task).gamma["nonconvex"], rel=1e-3)
    dense = theory_of(EF21(compressor=Identity()), task, participation=0.5).gamma["nonconvex"]
    assert 5 * best < dense < 1


def test_rare_features() -> None:
    """Clients that share no coordinate: c = 1, and the cost of compression falls by n."""
    hessians = np.array([np.diag([1.0, 2.0, 0, 0]), np.diag([0, 0, 3.0, 4.0])])
    task = quadratic_from(hessians, np.zeros((2, 4))).constants
    assert task.sharing == 1
    theory = theory_of(EF21(compressor=TOP1), task)
    plus = min(task.L_QM, math.sqrt(1 / 2) * 4)
    assert theory.gamma["rare"] == pytest.approx(1 / (2 + plus * xi(0.25) * math.sqrt(1 / 2)))
    assert theory.gamma["rare"] > theory.gamma["nonconvex"]
    assert least_squares(3, 4).constants.sharing == 3
    rows = np.kron(np.eye(2), np.ones((5, 2)))
    assert logistic_regression((rows, np.arange(10) % 2), n=2).constants.sharing == 2, "the penalty is everybody's"
    assert theory_of(EF21(compressor=TOP1), C).gamma["rare"] == theory_of(EF21(compressor=TOP1), C).gamma["nonconvex"]


def test_bidirectional() -> None:
    dense = theory_of(EF21BC(compressor=TOP1, server_compressor=Identity()), C).gamma
    plain = theory_of(EF21(compressor=TOP1), C).gamma
    assert dense == pytest.approx({name: plain[name] for name in dense})
    both = theory_of(EF21BC(compressor=TOP1, server_compressor=TopK(k=5)), C)
    gain = 18.486833 + 2.414214 + 2 * 18.486833 * 2.414214
    assert both.gamma["nonconvex"] == pytest.approx(1 / (2 + C.L_QM * gain), rel=1e-6)


def test_heavy_ball() -> None:
    gamma = theory_of(EF21(compressor=TOP1, momentum=0.5), C).gamma
    assert gamma["nonconvex"] == pytest.approx(0.25 / (2 + 0.5 * C.L_QM * 18.486833), rel=1e-7)
    assert gamma["nonconvex AM"] == pytest.approx(0.25 / (2 + 0.5 * 25.75 * 18.486833), rel=1e-7)
    assert theory_of(EF21(compressor=Identity(), momentum=0.9), C).gamma["nonconvex"] == pytest.approx(0.01 / 2)
    for settings, options in (({}, {"participation": 0.5}), ({"prox": L1()}, {})):
        with pytest.raises(ConfigError, match=r"EF21 with momentum 0.5 only with everybody in every round and without"):
            theory_of(EF21(compressor=TOP1, momentum=0.5, **settings), C, **options)  # type: ignore[arg-type]


def test_ef14() -> None:
    assert theory_of(EF14(compressor=TOP1), C).gamma == {"nonconvex": pytest.approx(1 / (2 * 19.486833), rel=1e-7)}
    assert theory_of(EF14(compressor=Identity()), C).gamma["nonconvex"] == 1 / 2, "gradient descent"


CIRCLE = np.exp(1j * np.linspace(0, np.pi, 100_001))
"""Where a filter has its gain: the greatest value of its transfer function."""


@pytest.mark.parametrize("momenta", [1, 2, 3])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.1])
def test_sgdm(momenta: int, eta: float) -> None:
    """The gain from changes of a gradient to what its averages lag behind, by their transfer functions."""
    z = CIRCLE[1:]
    averages = (eta / (1 - (1 - eta) * z)) ** momenta
    lag, changes = np.abs((averages - 1) / (1 - z)).max(), np.abs(averages).max()
    theory = theory_of(EF21SGDM(compressor=TOP1, eta=eta, momenta=momenta), C)
    assert theory.gamma["nonconvex"] == pytest.approx(1 / (2 + 2 * lag + C.L_QM * changes * 18.486833), rel=1e-6)
    assert theory.gamma["nonconvex AM"] == pytest.approx(1 / (2 + 2 * lag + 25.75 * changes * 18.486833), rel=1e-6)


@pytest.mark.parametrize("eta", [0.1 / 400, 0.01, 0.04])
def test_econtrol(eta: float) -> None:
    """The gain from changes of a gradient to the error of its estimate, by the transfer functions of the loop."""
    q, filtered = math.sqrt(0.9), 1 / (1 - (1 - eta) * CIRCLE)
    back = np.abs(1 + eta - eta**2 * CIRCLE * filtered).max()
    out = np.abs(eta * CIRCLE * filtered - 1).max()
    gamma = theory_of(EControl(compressor=TOP1, eta=eta), C).gamma
    assert q * back < 1
    assert gamma["nonconvex"] == pytest.approx(1 / (2 + C.L_QM * out * q / (1 - q * back)), rel=1e-6)
    assert theory_of(EControl(compressor=TOP1, eta=0.0), C).gamma == pytest.approx(
        {name: g for name, g in theory_of(EF21(compressor=TOP1), C).gamma.items() if name in gamma}
    )
    assert theory_of(EControl(compressor=Identity()), C).gamma["nonconvex"] == 1 / 2
    with pytest.raises(ConfigError, match=r"no step size of EControl is proved for eta = 0.1 and alpha = 0.1, but f"):
        theory_of(EControl(compressor=TOP1), C)


def test_page() -> None:
    """Against Young's inequality with the best of many weights s; with p = 1 EF21, with the identity PAGE."""
    task, p, tau = Constants(2.0, C.L_i, 10, L_samples=60.0), 0.2, 5
    spread = 60 / math.sqrt(tau)
    s = np.geomspace(1e-2, 1e2, 100_001)
    squares = p * (1 + s) * C.L_QM**2 + (1 + 1 / s) * (1 - p) * spread**2 + (1 - p) * (C.L_QM**2 + spread**2)
    gain = 18.486833 * math.sqrt(squares.min()) + spread * math.sqrt((1 - p) / (p * 4))
    assert theory_of(EF21PAGE(compressor=TOP1, p=p), task, tau).gamma["nonconvex"] == pytest.approx(1 / (2 + gain))
    plain = theory_of(EF21(compressor=TOP1), C).gamma["nonconvex"]
    assert theory_of(EF21PAGE(compressor=TOP1, p=1.0), C).gamma["nonconvex"] == pytest.approx(plain)
    page = with_theory(EF21PAGE(compressor=Identity(), p=p), task, tau=tau).lr
    assert page == pytest.approx(1 / (2 + 60 * math.sqrt((1 - p) / (p * 4 * tau))))
    with pytest.raises(ConfigError, match=r"p = 0.2 needs the smoothness of single samples, which is unknown here"):
        theory_of(EF21PAGE(compressor=TOP1, p=p), C, tau)
    with pytest.raises(ConfigError, match="tau is 0; expected how many samples a client"):
        with_theory(EF21PAGE(compressor=TOP1, p=p), task)


def test_smoothness_of_samples() -> None:
    """The bound holds, and one client's samples of a quadratic attain it."""
    rng = np.random.default_rng(0)
    logistic = logistic_regression((3 * rng.standard_normal((12, 4)), np.arange(12) % 2), n=3, lam=0.5)
    for problem, tight in ((logistic, False), (least_squares(3, 4), False), (least_squares(1, 4), True)):
        a, y = problem.dataset.train.x, problem.dataset.train.y

        def gradients(x: torch.Tensor, problem: Any = problem, a: torch.Tensor = a, y: Any = y) -> torch.Tensor:
            out = (a @ x).requires_grad_()
            return torch.autograd.grad(problem.loss(out, y).sum(), out)[0].unsqueeze(1) * a

        weighted = a * a.norm(dim=1, keepdim=True)
        direction = torch.linalg.svd(weighted).Vh[0]
        steps = [direction, *torch.from_numpy(rng.standard_normal((20, 4)))]
        changes = [gradients(v / 2) - gradients(-v / 2) for v in steps]
        ratios = [float((c.square().sum(1).mean() / (v @ v)).sqrt()) for c, v in zip(changes, steps, strict=True)]
        bound = problem.constants.L_samples
        assert bound is not None and max(ratios) <= bound * (1 + 1e-12)
        assert not tight or ratios[0] == pytest.approx(bound)


def test_unbiased_methods() -> None:
    rand = RandK(k=2)                                      # omega = 4
    assert theory_of(DCGD(compressor=rand), C).gamma["convex"] == pytest.approx(1 / (2 + 2 * 100 * 4 / 4))
    assert theory_of(DCGD(compressor=Identity()), C).gamma["convex"] == 1 / 2, "gradient descent"
    diana = theory_of(DIANA(compressor=rand), C).gamma
    assert diana["nonconvex"] == pytest.approx(1 / (10 * 2 * math.sqrt(2) * 6))
    assert diana["convex"] == pytest.approx(1 / (100 * 7))
    marina = theory_of(MARINA(compressor=rand), C)
    assert marina.constants["p"] == pytest.approx(0.2)
    assert marina.gamma["nonconvex"] == pytest.approx(1 / (C.L_QM * (1 + 4 / math.sqrt(4)))), "1 + omega / sqrt(n)"
    some = theory_of(MARINA(compressor=rand), C, participation=0.5)
    assert some.constants["p"] == pytest.approx(0.1)
    assert some.gamma["nonconvex"] == pytest.approx(1 / (C.L_QM * (1 + math.sqrt(0.9 * 5 / (0.1 * 2)))))


@pytest.mark.parametrize("cls", [DCGD, DIANA, EF14, EF21, EF21Plus, EF21W, EControl, MARINA])
def test_theory_of_full_gradients_says_nothing_of_minibatches(cls: Any) -> None:
    by = RandK(k=2) if cls in (DCGD, DIANA, MARINA) else TOP1
    settings = {"eta": 0.0} if cls is EControl else {"p": 0.2} if cls is MARINA else {}
    assert theory_of(cls(compressor=by, **settings), C).gamma
    algorithm = cls(compressor=by, gradient="minibatch", **settings)
    for ask in (lambda task: theory_of(algorithm, task), lambda task: with_theory(algorithm, task)):
        with pytest.raises(ConfigError, match=rf'no step size of {cls.__name__} is proved for gradient = "minibatch"'):
            ask(C)


def test_an_algorithm_with_a_step_size_of_its_theory() -> None:
    P = least_squares(5, 8)
    algorithm = EF21(compressor=TOP1, start="zero")
    assert with_theory(algorithm, P, 16).lr == 16 * theory_of(algorithm, P).gamma["nonconvex"]
    assert with_theory(algorithm, P, regime="PL AM").lr == theory_of(algorithm, P).gamma["PL AM"]
    assert with_theory(algorithm, P.constants, participation=0.5).start == "zero"
    assert with_theory(DCGD(compressor=Identity()), P).lr == pytest.approx(1 / P.smoothness)


def test_theory_that_knows_no_partial_participation() -> None:
    with pytest.raises(ConfigError, match=r"EF14 knows no participation; it takes none, as everybody is in"):
        with_theory(EF14(compressor=TOP1), C, participation=0.5)
    with pytest.raises(ConfigError, match=r"EF21 knows no tau; it takes participation"):
        with_theory(EF21(compressor=TOP1), C, tau=3)


def test_theory_of_a_task_that_nobody_knows() -> None:
    algorithm: Any = EF21(compressor=TOP1)
    with pytest.raises(ConfigError, match=r"theory was asked of str 'digits', whose smoothness constants L and L_i"):
        with_theory(algorithm, "digits")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"EF21 has no step size for the regime 'PL' here; it has .*mu > 0"):
        with_theory(algorithm, Constants(1.0, (1.0,), 10), regime="PL")
    with pytest.raises(ConfigError, match=r"theory of ChocoSGD is of its gamma .*choco_gossip\(compressor, W, d\)"):
        with_theory(ChocoSGD(), least_squares())
    with pytest.raises(ConfigError, match="no step size of theory is known for FedAvg"):
        with_theory(FedAvg(), C)
    with pytest.raises(ConfigError, match="participation is 0; expected a share above 0 and at most 1"):
        with_theory(algorithm, C, participation=0)
    with pytest.raises(ConfigError, match=r"theory needs omega of TopK\(.*which is biased"):
        with_theory(DCGD(), C)
    with pytest.raises(ConfigError, match=r"theory needs alpha of Threshold\(.*not known to be contractive"):
        theory_of(EF21(compressor=Threshold(0.1, relative=False)), C)
