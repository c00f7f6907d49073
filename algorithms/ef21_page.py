"""EF21-PAGE: Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, 2021 (arXiv 2110.03294); its estimator is that of Li, Bao,
Zhang, Richtarik, ICML 2021 (arXiv 2008.10898).

    before round 1:  v_i, g_i <- grad f_i(x);   g <- sum_i p_i g_i
    server:    x <- x - gamma g;   one coin for all: heads with probability p
    client i:  heads:  v_i <- grad f_i(x)
               tails:  v_i <- v_i + grad f_i(x; B) - grad f_i(x_i; B),  x_i being the model it was sent last
               c_i <- C(v_i - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S p_i c_i

B is the round's minibatches; of tau samples among a client's m, p = tau / (tau + m) balances the costs. p = 1 is EF21.
Everybody derives the coin from the seed. Down 1 vector, up 1 compressed vector; in round 0, up 1 vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.ef21 import follow
from fedsim import Batch, Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import contractive, in_range, positive
from fedsim.compress import TopK

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
        positive(self, "lr", "p")
        in_range(self, "p", 0, 1, closed=True)
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


def mean_difference(local: Local, x: Vector, y: Vector) -> Vector:
    """Mean over this round's minibatches of the gradients at ``x`` minus those at ``y``, on the same samples."""

    def step(total: Vector, batch: Batch, x: Vector, y: Vector, share: Vector) -> Vector:
        return total + share * (local.grad(x, batch) - local.grad(y, batch))

    return local.fold(step, torch.zeros_like(x), x, y, 1 / local.steps)
