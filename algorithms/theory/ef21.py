"""EF21 and its family; alpha is that of C, and theta, beta, xi, L~ and the lemma are those of ``algorithms.theory``.

    EF21, EF21-Prox, EF21Plus (for a deterministic C):
        nonconvex  gamma = 1 / (L + L~ xi)                      (with Prox, f + r falls as well)
        PL         gamma = min(1 / (L + sqrt(2) L~ xi), theta / (2 mu))
        rare       gamma = 1 / (L + L+ xi sqrt(c / n)), L+ = min(L_QM, sqrt(c / n) L_max), where no coordinate matters
                   to more than c clients
        nonconvex with participation p:  gamma = 1 / (L + sqrt(B / theta_p)),  B = (p beta + (1 + 1 / rho)(1 - p)) L~^2,
                   theta_p = p theta - rho (1 - p),  theta = 1 - (1 + s)(1 - alpha),  beta = (1 + 1 / s)(1 - alpha), for
                   any s, rho > 0 with theta_p > 0: here those of the largest gamma
    EF21-HB with momentum eta:
        gamma = (1 - eta)^2 / (L + (1 - eta) L~ xi), of the order of the paper's rate, whose constant is not at hand, by
        the lemma: z = x - gamma eta / (1 - eta) old v moves by -gamma / (1 - eta) g, which errs from grad f(z) with the
        gains L~ xi (as x moves no more than z) and L eta / (1 - eta) (as x is no further from z)
    EF21W: the same as EF21 with L~ = L_AM, but for rare features
    EF21BC, by the lemma (the paper's is not at hand; its authors' code uses multiples of EF21's):
        gamma = 1 / (L + L~ (xi + xi_M + 2 xi xi_M)), as g~_i follows the gradients with the gain xi, and g follows g~,
        whose changes c_i, at most 1 + 2 xi times those of the gradients, err with the gain xi_M
    EF21SGDM with m momenta:
        gamma = 1 / (L + m L (1 - eta) / eta + L~ xi), of the order of the paper's min(eta / L, alpha / L~), whose own
        constants are not at hand, by the lemma: averages change no more than what they average, so that g_i errs as u_i
        with the gain xi, and as grad f m averages err with the gain (1 - eta) / eta each. Noise adds a floor and no
        condition on gamma
    EF21PAGE, with l_i^2 ||x - y||^2 bounding the mean over client i's samples of the squared change of their gradients,
    and l the quadratic mean of the l_i:
        gamma = 1 / (L + xi K + l sqrt((1 - p) / (p n tau))),
        K^2 = L~^2 + 2 L~ l sqrt(p (1 - p) / tau) + 2 (1 - p) l^2 / tau
        With p = 1 this is EF21's, with the identity PAGE's; the paper's own constants are not at hand. By the lemma:
        v_i - grad f_i is a sum of zero-mean errors of variance l_i^2 / tau times the squared steps, which heads delete;
        K is the gain from steps to changes of v_i, the square root of
            p ||grad f_i(x) - v_i||^2 + (1 - p) (||grad f_i(x) - grad f_i(x_i)||^2 + l_i^2 ||x - x_i||^2 / tau)
"""

from __future__ import annotations

import math

from algorithms.ef21 import EF21
from algorithms.ef21_bc import EF21BC
from algorithms.ef21_page import EF21PAGE
from algorithms.ef21_plus import EF21Plus
from algorithms.ef21_sgdm import EF21SGDM
from algorithms.ef21_w import EF21W
from algorithms.theory.step_sizes import (
    Task,
    Theory,
    alpha_of,
    beta,
    constants_of,
    nonconvex,
    refuse_minibatches,
    refuse_no_share,
    theory_of,
    theta,
    xi,
)
from fedsim import Compressor
from fedsim.errors import ConfigError


@theory_of.register
def _ef21(algorithm: EF21, task: Task, participation: float = 1.0) -> Theory:
    refuse_minibatches(algorithm)
    plain, eta = following(algorithm.compressor, task, participation), algorithm.momentum
    if eta == 0:
        return plain
    if participation < 1 or algorithm.prox is not None:
        raise ConfigError(
            f"theory knows EF21 with momentum {eta} only with everybody in every round and without prox;"
            f" got participation {participation}, prox {algorithm.prox!r}. Set momentum to 0, or lr by hand"
        )
    c, left = constants_of(task), 1 - eta
    gammas = nonconvex(c, lambda L: L * plain.constants["xi"] + c.L * eta / left)
    return Theory({name: left * gamma for name, gamma in gammas.items()}, plain.constants)


@theory_of.register
def _plus(algorithm: EF21Plus, task: Task) -> Theory:
    refuse_minibatches(algorithm)
    return following(algorithm.compressor, task)


@theory_of.register
def _weighted(algorithm: EF21W, task: Task, participation: float = 1.0) -> Theory:
    """With L_i that ``smoothness`` is proportional to."""
    refuse_minibatches(algorithm)
    plain = following(algorithm.compressor, task, participation)
    gammas = {name.removesuffix(" AM"): g for name, g in plain.gamma.items() if name.endswith(" AM")}
    return Theory(gammas, plain.constants)


@theory_of.register
def _bidirectional(algorithm: EF21BC, task: Task) -> Theory:
    c = constants_of(task)
    xi_i, xi_m = (xi(alpha_of(by, c.d)) for by in (algorithm.compressor, algorithm.server_compressor))
    gammas = nonconvex(c, lambda L: L * (xi_i + xi_m + 2 * xi_i * xi_m))
    return Theory(gammas, {"xi": xi_i, "xi_M": xi_m, "L": c.L, "L_QM": c.L_QM, "L_AM": c.L_AM})


@theory_of.register
def _momenta(algorithm: EF21SGDM, task: Task) -> Theory:
    c = constants_of(task)
    alpha = alpha_of(algorithm.compressor, c.d)
    cost, lag = xi(alpha), algorithm.momenta * (1 - algorithm.eta) / algorithm.eta
    gammas = nonconvex(c, lambda L: L * cost + c.L * lag)
    return Theory(gammas, {"alpha": alpha, "xi": cost, "lag": lag, "L": c.L, "L_QM": c.L_QM, "L_AM": c.L_AM})


@theory_of.register
def _page(algorithm: EF21PAGE, task: Task, tau: int = 0) -> Theory:
    """With ``tau`` samples of each client in tails."""
    c, p = constants_of(task), algorithm.p
    if tau < 1 and p < 1:
        raise ConfigError(f"tau is {tau}; expected how many samples a client's minibatches of a round have")
    if c.L_samples is None and p < 1:
        raise ConfigError(
            f"theory of EF21PAGE with p = {p} needs the smoothness of single samples, which is unknown here;"
            " expected fedsim.problems.Constants(..., L_samples=...), a problem of fedsim.problems, or p = 1"
        )
    cost, spread = xi(alpha_of(algorithm.compressor, c.d)), (c.L_samples or 0.0) / math.sqrt(tau or 1)
    K = math.sqrt(c.L_QM**2 + 2 * math.sqrt(p * (1 - p)) * c.L_QM * spread + 2 * (1 - p) * spread**2)
    gamma = 1 / (c.L + cost * K + spread * math.sqrt((1 - p) / (p * c.n)))
    return Theory({"nonconvex": gamma}, {"xi": cost, "K": K, "L": c.L, "L_QM": c.L_QM})


def following(compressor: Compressor, task: Task, participation: float = 1.0) -> Theory:
    """Step sizes of EF21 without momentum, for every method of its kind."""
    refuse_no_share(participation)
    c = constants_of(task)
    alpha = alpha_of(compressor, c.d)
    cost, p = xi(alpha), participation
    constants = {"alpha": alpha, "xi": cost, "theta": theta(alpha), "beta": beta(alpha), "L": c.L, "L_AM": c.L_AM}
    constants |= {"L_QM": c.L_QM, "L_var": c.L_var, "mu": c.mu}
    if p < 1:
        cost, s, rho = partial_participation(alpha, p)
        return Theory(nonconvex(c, lambda L: L * cost), {**constants, "s": s, "rho": rho})
    gammas = nonconvex(c, lambda L: L * cost)
    if c.mu:
        for name, L in (("PL", c.L_QM), ("PL AM", c.L_AM)):
            gammas[name] = min(1 / (c.L + math.sqrt(2) * L * cost), theta(alpha) / (2 * c.mu))
    share = (c.sharing or c.n) / c.n
    plus = min(c.L_QM, math.sqrt(share) * c.L_max)
    gammas["rare"] = 1 / (c.L + plus * cost * math.sqrt(share))
    return Theory(gammas, {**constants, "c": float(c.sharing or c.n)})


def partial_participation(alpha: float, p: float) -> tuple[float, float, float]:
    """The smallest ``sqrt(B / theta_p) / L~``, in place of xi, and the s and rho that it takes."""
    from scipy.optimize import minimize_scalar  # slow to import, and seldom needed

    def best_rho(s: float) -> tuple[float, float]:
        theta, beta = 1 - (1 + s) * (1 - alpha), (1 + 1 / s) * (1 - alpha)
        a, b, c = p * beta + 1 - p, 1 - p, p * theta       # minimise (a + b / rho) / (c - b rho)
        rho = c / (b + math.sqrt(b * b + a * c))
        return (a + b / rho) / (c - b * rho), rho

    if alpha == 1:                                         # s may be as large as one likes
        alpha = 1 - 1e-12
    limit = alpha / (1 - alpha)                            # where theta = 0
    found = minimize_scalar(lambda u: best_rho(u * limit)[0], bounds=(1e-9, 1 - 1e-9), method="bounded")
    s = float(found.x) * limit
    cost, rho = best_rho(s)
    return math.sqrt(cost), s, rho
