"""EF21: Richtarik, Sokolov, Fatkhullin, NeurIPS 2021 (arXiv 2106.05203), Algorithm 1; and what changes little of it:
Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, "EF21 with Bells & Whistles", 2021 (arXiv 2110.03294).

    before round 1:  g_i <- grad f_i(x);   g, v <- sum_i p_i g_i
    server:    x <- prox_{gamma r}(x - gamma v)
    client i:  c_i <- C(grad f_i(x) - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S p_i c_i;   v <- eta v + g

- EF21: eta = 0, r = 0, everybody. With the identity this is gradient descent.
- EF21-PP: only the cohort S takes part; the sum is divided by n, not by |S|, so that g stays the mean of all g_i.
- EF21-HB: eta > 0.   EF21-Prox: r given.   EF21-SGD: minibatch gradients; their noise is not averaged away.

``start`` says how the g_i begin: dense (the authors' code), compressed (their paper), or zero (for which any method of
this kind converges, a step later). Down 1 vector, up 1 compressed vector; in round 0 the same, the
latter as it is if dense, or nothing if zero.

Step sizes in theory (alpha of C; theta, beta, xi of alpha: ``algorithms.theory``), with L~ the quadratic mean L_QM of
the L_i, or, as Richtarik, Gasanov, Burlachenko prove ("Error Feedback Reloaded", ICLR 2024, arXiv 2402.10774), their
smaller arithmetic mean L_AM:
    nonconvex  gamma = 1 / (L + L~ xi)
    PL         gamma = min(1 / (L + sqrt(2) L~ xi), theta / (2 mu))
    rare       gamma = 1 / (L + L+ xi sqrt(c / n)), L+ = min(L_QM, sqrt(c / n) L_max), where no coordinate matters to
               more than c clients
    nonconvex with participation p:  gamma = 1 / (L + sqrt(B / theta_p)),  B = (p beta + (1 + 1 / rho)(1 - p)) L~^2,
               theta_p = p theta - rho (1 - p),  theta = 1 - (1 + s)(1 - alpha),  beta = (1 + 1 / s)(1 - alpha), for any
               s, rho > 0 with theta_p > 0: here those of the largest gamma
    nonconvex with momentum eta:  gamma = (1 - eta)^2 / (L + (1 - eta) L~ xi), of the order of the paper's rate, whose
               constant is not at hand, by the lemma of ``algorithms.theory``: z = x - gamma eta / (1 - eta) old v moves
               by -gamma / (1 - eta) g, which errs from grad f(z) with the gains L~ xi (as x moves no more than z) and
               L eta / (1 - eta) (as x is no further from z)
With r, the first makes f + r fall as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from algorithms import theory
from algorithms.dcgd import Gradient, gradient_of
from algorithms.theory import Task, Theory
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import contractive, in_range, one_of, positive
from fedsim.compress import TopK
from fedsim.errors import ConfigError

Start = Literal["dense", "compressed", "zero"]


class EF21State(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] sum_i p_i g_i
    v: Vector  # [d] the step's direction: g, with momentum
    g_i: Kept[Vector]  # [n, d] each client's estimate of its gradient, which the server could compute as well


@dataclass(frozen=True)
class L1:
    """The regulariser ``r(x) = lam ||x||_1``, for EF21-Prox.

    Args:
        lam: its weight.
    """

    lam: float = 1e-3

    def __post_init__(self) -> None:
        positive(self, "lam")

    def __call__(self, x: Vector, gamma: Vector) -> Vector:
        """The minimiser of ``gamma r(y) + ||y - x||^2 / 2``, both ``[d]``."""
        return torch.sign(x) * (x.abs() - gamma * self.lam).clamp(min=0)


@dataclass(frozen=True)
class EF21:
    """Compressed gradient descent that sends compressed changes of the gradients: exact on any clients.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the change of their gradients; contractive.
        start: the clients' first estimates: their gradients as they are, compressed, or zero.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch", EF21-SGD).
        momentum: heavy-ball coefficient eta of the server (EF21-HB).
        prox: proximal operator of a regulariser that the server knows, ``prox(x, gamma)``, such as L1 (EF21-Prox).
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    start: Start = "dense"
    gradient: Gradient = "full"
    momentum: float = 0.0
    prox: Callable[[Vector, Vector], Vector] | None = None

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "start", ("dense", "compressed", "zero"))
        one_of(self, "gradient", ("full", "minibatch"))
        in_range(self, "momentum", 0, 1)
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> EF21State:
        g, g_i = torch.zeros_like(x), clients.keep(torch.zeros_like(x))
        if self.start != "zero":
            sent, g_i = clients.each(self.begin, x, g_i)
            g = clients.mean(sent)
        return EF21State(x, g, g, g_i)

    def round(self, s: EF21State, clients: Clients) -> EF21State:
        gamma = self.lr * clients.decay
        x = s.x - gamma * s.v
        if self.prox is not None:
            x = self.prox(x, gamma)
        sent, g_i = clients.each(self.client, x, s.g_i)
        g = s.g + clients.fraction * clients.mean(sent)
        return EF21State(x, g, self.momentum * s.v + g, s.g_i | g_i)

    def begin(self, local: Local, x: Vector, _: Vector) -> tuple[Vector | Packed, Vector]:
        v = gradient_of(local, x, self.gradient)
        if self.start == "dense":
            return v, v
        c = self.compressor.compress(v, local)
        return c, c.unpack()

    def client(self, local: Local, x: Vector, g_i: Vector) -> tuple[Packed, Vector]:
        return follow(self.compressor, gradient_of(local, x, self.gradient), g_i, local)

    def theory(self, task: Task, participation: float = 1.0) -> Theory:
        """Step sizes, where ``participation`` is the share of clients that take part in a round; see the module.

        Raises:
            ConfigError: no step size is known for these settings together.
        """
        theory.refuse_minibatches(self)
        plain = ef21_theory(self.compressor, task, participation)
        if self.momentum == 0:
            return plain
        if participation < 1 or self.prox is not None:
            raise ConfigError(
                f"theory knows EF21 with momentum {self.momentum} only with everybody in every round and without prox;"
                f" got participation {participation}, prox {self.prox!r}. Set momentum to 0, or lr by hand"
            )
        c, left = theory.constants_of(task), 1 - self.momentum
        gammas = theory.nonconvex(c, lambda L: L * plain.constants["xi"] + c.L * self.momentum / left)
        return Theory({name: left * gamma for name, gamma in gammas.items()}, plain.constants)


def follow(compressor: Compressor, v: Vector, g_i: Vector, local: Local) -> tuple[Packed, Vector]:
    """The message ``c = C(v - g_i)``, and ``g_i + c`` as its receiver reads it."""
    c = compressor.compress(v - g_i, local)
    return c, g_i + c.unpack()


def ef21_theory(compressor: Compressor, task: Task, participation: float = 1.0) -> Theory:
    """``EF21.theory``, for every method of its kind."""
    if not 0 < participation <= 1:
        raise ConfigError(f"participation is {participation}; expected a share above 0 and at most 1")
    c = theory.constants_of(task)
    alpha = theory.alpha_of(compressor, c.d)
    xi, theta, p = theory.xi(alpha), theory.theta(alpha), participation
    constants = {"alpha": alpha, "xi": xi, "theta": theta, "beta": theory.beta(alpha), "L": c.L, "L_AM": c.L_AM}
    constants |= {"L_QM": c.L_QM, "L_var": c.L_var, "mu": c.mu}
    if p < 1:
        cost, s, rho = partial_participation(alpha, p)
        return Theory(theory.nonconvex(c, lambda L: L * cost), {**constants, "s": s, "rho": rho})
    gammas = theory.nonconvex(c, lambda L: L * xi)
    if c.mu:
        for name, L in (("PL", c.L_QM), ("PL AM", c.L_AM)):
            gammas[name] = min(1 / (c.L + math.sqrt(2) * L * xi), theta / (2 * c.mu))
    share = (c.sharing or c.n) / c.n
    plus = min(c.L_QM, math.sqrt(share) * c.L_max)
    gammas["rare"] = 1 / (c.L + plus * xi * math.sqrt(share))
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
