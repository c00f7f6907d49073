"""EF21-PAGE: Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, 2021 (arXiv 2110.03294); its estimator is that of Li, Bao,
Zhang, Richtarik, ICML 2021 (arXiv 2008.10898).

    before round 1:  v_i, g_i <- grad f_i(x);   g <- sum_i p_i g_i
    server:    x <- x - gamma g;   one coin for all: heads with probability p
    client i:  heads:  v_i <- grad f_i(x)
               tails:  v_i <- v_i + grad f_i(x; B) - grad f_i(x_i; B),  x_i being the model it was sent last
               c_i <- C(v_i - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S p_i c_i

B is the round's minibatches; of tau samples among a client's m, p = tau / (tau + m) balances the costs. p = 1 is EF21.
Everybody derives the coin from the seed. Down 1 vector, up 1 compressed vector; in round 0, 1 vector both ways.

Step size in theory, with l_i^2 ||x - y||^2 bounding the mean over client i's samples of the squared change of their
gradients, and l the quadratic mean of the l_i:
    gamma = 1 / (L + xi K + l sqrt((1 - p) / (p n tau))),
    K^2 = L~^2 + 2 L~ l sqrt(p (1 - p) / tau) + 2 (1 - p) l^2 / tau
With p = 1 this is EF21's, with the identity PAGE's; the paper's own constants are not at hand. By the lemma of
``algorithms.theory``: v_i - grad f_i is a sum of zero-mean errors of variance l_i^2 / tau times the squared steps,
which heads delete; K is the gain from steps to changes of v_i, the square root of
    p ||grad f_i(x) - v_i||^2 + (1 - p) (||grad f_i(x) - grad f_i(x_i)||^2 + l_i^2 ||x - x_i||^2 / tau).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms import theory
from algorithms.ef21 import follow
from algorithms.theory import Task, Theory
from fedsim import Batch, Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import contractive, positive, share
from fedsim.compress import TopK
from fedsim.errors import ConfigError

Memory = tuple[Vector, Vector, Vector]
"""v_i, g_i and x_i."""


class EF21PAGEState(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] sum_i p_i g_i
    mine: Kept[Memory]  # [n, d] each


@dataclass(frozen=True)
class EF21PAGE:
    """EF21 on variance-reduced gradients: a whole shard now and then, differences on minibatches in between.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the change of their estimates; contractive.
        p: probability of a round with full gradients, above 0.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    p: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "lr")
        share(self, "p")
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> EF21PAGEState:
        sent, mine = clients.each(self.begin, x, clients.keep((torch.zeros_like(x),) * 3))
        return EF21PAGEState(x, clients.mean(sent), mine)

    def round(self, s: EF21PAGEState, clients: Clients) -> EF21PAGEState:
        x = s.x - self.lr * clients.decay * s.g
        sent, mine = clients.each(self.heads if clients.toss(self.p) else self.tails, x, s.mine)
        return EF21PAGEState(x, s.g + clients.fraction * clients.mean(sent), s.mine | mine)

    def begin(self, local: Local, x: Vector, _: Memory) -> tuple[Vector, Memory]:
        v = local.grad(x)
        return v, (v, v, x)

    def heads(self, local: Local, x: Vector, mine: Memory) -> tuple[Packed, Memory]:
        return self.send(local, local.grad(x), mine, x)

    def tails(self, local: Local, x: Vector, mine: Memory) -> tuple[Packed, Memory]:
        return self.send(local, mine[0] + mean_difference(local, x, mine[2]), mine, x)

    def send(self, local: Local, v: Vector, mine: Memory, x: Vector) -> tuple[Packed, Memory]:
        c_i, g_i = follow(self.compressor, v, mine[1], local)
        return c_i, (v, g_i, x)

    def theory(self, task: Task, tau: int = 0) -> Theory:
        """The step size, with everybody in every round and ``tau`` samples of each in tails; see the module.

        Raises:
            ConfigError: tails are possible, and ``tau`` or the smoothness of single samples is not known.
        """
        c, p = theory.constants_of(task), self.p
        if tau < 1 and p < 1:
            raise ConfigError(f"tau is {tau}; expected how many samples a client's minibatches of a round have")
        if c.L_samples is None and p < 1:
            raise ConfigError(
                f"theory of EF21PAGE with p = {p} needs the smoothness of single samples, which is unknown here;"
                " expected fedsim.problems.Constants(..., L_samples=...), a problem of fedsim.problems, or p = 1"
            )
        xi, spread = theory.xi(theory.alpha_of(self.compressor, c.d)), (c.L_samples or 0.0) / math.sqrt(tau or 1)
        K = math.sqrt(c.L_QM**2 + 2 * math.sqrt(p * (1 - p)) * c.L_QM * spread + 2 * (1 - p) * spread**2)
        gamma = 1 / (c.L + xi * K + spread * math.sqrt((1 - p) / (p * c.n)))
        return Theory({"nonconvex": gamma}, {"xi": xi, "K": K, "L": c.L, "L_QM": c.L_QM})


def mean_difference(local: Local, x: Vector, y: Vector) -> Vector:
    """Mean of the gradients at ``x`` minus those at ``y`` over the samples of this round's minibatches."""

    def step(total: Vector, batch: Batch, x: Vector, y: Vector, share: Vector) -> Vector:
        return total + share * (local.grad(x, batch) - local.grad(y, batch))

    return local.fold(step, torch.zeros_like(x), x, y, shares=True)
