"""EF21-PAGE: Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, 2021 (arXiv 2110.03294); its estimator is that of Li, Bao,
Zhang, Richtarik, ICML 2021 (arXiv 2008.10898).

    before round 1:  v_i, g_i <- grad f_i(x);   g <- sum_i p_i g_i
    server:    x <- x - gamma g;   one coin for all: heads with probability p
    client i:  heads:  v_i <- grad f_i(x)
               tails:  v_i <- v_i + grad f_i(x; B) - grad f_i(x_i; B),  with x_i the last model it was sent
               c_i <- C(v_i - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S p_i c_i

B is the round's minibatches; of tau samples among a client's m, p = tau / (tau + m) balances the costs. p = 1 is EF21.
Everybody derives the coin from the seed. Down 1 vector, up 1 compressed vector; in round 0, 1 vector both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import mean_difference
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import positive, share
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.feedback import EF21Uplink

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
    sums = (0,)  # the server adds up c_i

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
        c_i, (g_i, *_) = EF21Uplink(self.compressor).send(v, (mine[1],), local)
        return c_i, (v, g_i, x)
