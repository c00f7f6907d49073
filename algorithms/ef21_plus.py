"""EF21+: Richtarik, Sokolov, Fatkhullin, NeurIPS 2021 (arXiv 2106.05203).

    before round 1:  g_i <- grad f_i(x);   g <- sum_i p_i g_i
    server:    x <- x - gamma g
    client i:  u <- grad f_i(x);   b <- C(u);   c <- C(u - g_i)
               g_i + c is at least as near to u as b:  g_i <- g_i + c, send (0, c);   else  g_i <- b, send (1, b)
    server:    the same to its copy of g_i;   g <- g + sum_S p_i (new g_i - old g_i)

A message b replaces g_i, so the server must know the old g_i: it keeps all n of them, [n, d], where the rest of the
family keeps only their mean. Down 1 vector, up 1 compressed vector and 1 bit; in round 0, 1 vector both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.parts import Gradient, gradient_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import one_of, positive
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.feedback import EF21Uplink


class EF21PlusState(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] sum_i p_i g_i
    copies: Tensor  # [n, d] the server's g_i
    g_i: Kept[Vector]  # [n, d] each client's own


@dataclass(frozen=True)
class EF21Plus:
    """EF21 whose clients send their compressed gradient itself where that is nearer to the gradient.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to gradients and to their changes; contractive.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    gradient: Gradient = "full"
    no_rule = "its server reads every message by itself"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> EF21PlusState:
        sent, g_i = clients.each(self.begin, x, clients.keep(torch.zeros_like(x)))
        ids = torch.from_numpy(clients.ids).to(x.device)   # only some of them in a trial of the speed

        def receive(rows: Vector, weights: Tensor) -> tuple[Vector, Tensor]:
            return weights @ rows, rows.new_zeros(clients.n, len(x)).index_copy(0, ids, rows)

        g, copies = clients.reduce(sent, receive)
        return EF21PlusState(x, g, copies, g_i)

    def round(self, s: EF21PlusState, clients: Clients) -> EF21PlusState:
        x = s.x - self.lr * clients.decay * s.g
        sent, g_i = clients.each(self.client, x, s.g_i)
        ids = torch.from_numpy(clients.ids).to(x.device)

        def receive(messages: tuple[Tensor, Tensor], weights: Tensor) -> tuple[Vector, Tensor]:
            replaces, vectors = messages
            change = torch.where(replaces.unsqueeze(1), vectors - s.copies[ids], vectors)
            new = torch.where(replaces.unsqueeze(1), vectors, s.copies[ids] + vectors)
            return weights @ change, s.copies.index_copy(0, ids, new)

        change, copies = clients.reduce(sent, receive)
        return EF21PlusState(x, s.g + clients.fraction * change, copies, s.g_i | g_i)

    def begin(self, local: Local, x: Vector, _: Vector) -> tuple[Vector, Vector]:
        g_i = gradient_of(local, x, self.gradient)
        return g_i, g_i

    def client(self, local: Local, x: Vector, g_i: Vector) -> tuple[tuple[Tensor, Packed], Vector]:
        u = gradient_of(local, x, self.gradient)
        b = self.compressor.compress(u, local)
        c, (moved, *_) = EF21Uplink(self.compressor).send(u, (g_i,), local)
        alone = b.unpack()
        replaces = (moved - u).square().sum() > (alone - u).square().sum()
        parts = tuple(torch.where(replaces, p, q) for p, q in zip(b.parts, c.parts, strict=True))
        return (replaces, Packed(self.compressor, parts, c.d)), torch.where(replaces, alone, moved)
