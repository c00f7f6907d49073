"""MARINA, VR-MARINA and PP-MARINA: Gorbunov, Burlachenko, Li, Richtarik, ICML 2021 (arXiv 2102.07845), Algorithms 1-4.

    before round 1:  g <- sum_i p_i grad f_i(x)
    server:    x' <- x;   x <- x - gamma g;   one coin for all: heads with probability p
    heads, everybody:  send grad f_i(x);   server:  g <- sum_i p_i grad f_i(x)
    tails, client i of the cohort S:  send C(grad f_i(x) - grad f_i(x'));   server:  g <- g + mean_S

- MARINA: everybody is in S.   PP-MARINA: a random S; all clients only when the coin shows heads.
- VR-MARINA (gradient = "minibatch"): with tails both gradients are means over the same minibatches of the round.

C is unbiased; g is not, and yet it is exact on any clients. p = 1 / (1 + omega) by default, |S| / n of that with a part
of the clients: then a dense round costs no more than the compressed ones between. Clients keep nothing, so that any
cohort will do: with heads, down 1 vector and up 1; with tails, down 2 (x and x'), up 1 compressed vector.

Step sizes in theory (nonconvex, L~ the quadratic mean of the L_i):
    everybody      gamma = 1 / (L~ (1 + sqrt((1 - p) omega / (p n))))
    r clients      gamma = 1 / (L~ (1 + sqrt((1 - p) (1 + omega) / (p r))))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from algorithms import theory
from algorithms.dcgd import Gradient
from algorithms.ef21_page import mean_difference
from algorithms.theory import Task, Theory
from fedsim import Clients, Compressor, Local, Packed, Vector
from fedsim.checks import one_of, positive, share, unbiased
from fedsim.compress import RandK
from fedsim.errors import ConfigError


class MARINAState(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] estimate of the gradient at x


@dataclass(frozen=True)
class MARINA:
    """Dense gradients now and then, compressed differences of gradients in between.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the differences; unbiased.
        p: probability of a dense round, above 0; 1 / (1 + omega) times the share of clients in a round by default.
        gradient: differences on the whole shard ("full"), or on the round's minibatches ("minibatch", VR-MARINA).
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=RandK)
    p: float | None = None
    gradient: Gradient = "full"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        unbiased(self)
        if self.p is not None:
            share(self, "p")

    def init(self, x: Vector, clients: Clients) -> MARINAState:
        return MARINAState(x, clients.mean(clients.each(self.dense, x)))

    def round(self, s: MARINAState, clients: Clients) -> MARINAState:
        x = s.x - self.lr * clients.decay * s.g
        if clients.toss(self.probability(len(x), clients.cohort_size / clients.n)):
            everybody = clients.population
            return MARINAState(x, everybody.mean(everybody.each(self.dense, x)))
        return MARINAState(x, s.g + clients.mean(clients.each(self.difference, (x, s.x))))

    def probability(self, d: int, share: float) -> float:
        """p, for vectors of ``d`` coordinates and this share of the clients in a round."""
        return share / (1 + theory.omega_of(self.compressor, d)) if self.p is None else self.p

    def dense(self, local: Local, x: Vector) -> Vector:
        return local.grad(x)

    def difference(self, local: Local, down: tuple[Vector, Vector]) -> Packed:
        x, before = down
        full = self.gradient == "full"
        change = local.grad(x) - local.grad(before) if full else mean_difference(local, x, before)
        return self.compressor.compress(change, local)

    def theory(self, task: Task, participation: float = 1.0) -> Theory:
        """Step size for full gradients, with the share of clients that take part in a round."""
        if not 0 < participation <= 1:
            raise ConfigError(f"participation is {participation}; expected a share above 0 and at most 1")
        c = theory.constants_of(task)
        omega, p = theory.omega_of(self.compressor, c.d), self.probability(c.d, participation)
        variance = omega / c.n if participation == 1 else (1 + omega) / (participation * c.n)
        gamma = 1 / (c.L_QM * (1 + math.sqrt((1 - p) * variance / p)))
        return Theory({"nonconvex": gamma}, {"omega": omega, "p": p, "L_QM": c.L_QM})
