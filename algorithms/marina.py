"""MARINA, VR-MARINA and PP-MARINA: Gorbunov, Burlachenko, Li, Richtarik, ICML 2021 (arXiv 2102.07845), Algorithms 1-4.

    before round 1:  g <- sum_i p_i grad f_i(x)
    server:    x' <- x;   x <- x - gamma g;   one coin for all: heads with probability p
    heads, everybody:  send grad f_i(x);   server:  g <- sum_i p_i grad f_i(x)
    tails, client i of the cohort S:  send C(grad f_i(x) - grad f_i(x'));   server:  g <- g + mean_S

- MARINA: everybody is in S.   PP-MARINA: a random S; all clients only when the coin shows heads.
- VR-MARINA (gradient = "minibatch"): with tails both gradients are means over the same samples, those of the round's
  minibatches.

C is unbiased and g is not; the method is exact on heterogeneous clients all the same. By default p = 1 / (1 + omega),
times |S| / n under partial participation, so that dense rounds cost no more than the compressed ones in between.
VR-MARINA's p must be given; the paper's is the smaller of this and b / (b + m), for b of a client's m samples a round.

A client keeps grad f_i(x), or x for minibatches, until the next round. Down 1 vector, up 1 compressed vector, or 1 with
heads; one gradient, or two of minibatches. Clients of PP-MARINA's cohort that were away in the round before are also
sent x': down 2 vectors, one more gradient. (The paper's server sends g to all n clients in every round instead.)
In round 0, 1 vector both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.parts import Gradient, mean_difference, omega_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import one_of, positive, share
from fedsim.compress import RandK
from fedsim.compress.checks import unbiased
from fedsim.errors import ConfigError


class MARINAState(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] estimate of the gradient at x
    mine: Kept[Vector]  # [n, d] grad f_i(x), or x for minibatches, of the last round in which each client took part
    last: Tensor  # [n] that round


@dataclass(frozen=True)
class MARINA:
    """Dense gradients now and then, compressed differences of gradients in between.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the differences; unbiased.
        p: probability of a dense round, above 0; by default, with "full", 1 / (1 + omega) times the share of clients
            in a round.
        gradient: differences on the whole shard ("full"), or on the round's minibatches ("minibatch", VR-MARINA).
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=RandK)
    p: float | None = None
    gradient: Gradient = "full"
    no_rule = "its server adds up differences of its clients' memories"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        unbiased(self)
        if self.p is not None:
            share(self, "p")
        elif self.gradient == "minibatch":
            raise ConfigError(
                'MARINA.p is None, but has no default with gradient "minibatch"; expected a probability, such as'
                " min(1 / (1 + omega), b / (b + m)) for minibatches of b samples a round among a client's m"
            )

    def init(self, x: Vector, clients: Clients) -> MARINAState:
        sent, mine = clients.each(self.dense, x, clients.keep(torch.zeros_like(x)))
        return MARINAState(x, clients.mean(sent), mine, torch.zeros(clients.n, dtype=torch.int64, device=x.device))

    def round(self, s: MARINAState, clients: Clients) -> MARINAState:
        x = s.x - self.lr * clients.decay * s.g
        if clients.toss(self.probability(len(x), clients.cohort_size / clients.n)):
            everybody = clients.population
            sent, mine = everybody.each(self.dense, x, s.mine)
            return MARINAState(x, everybody.mean(sent), s.mine | mine, self.now(s.last, everybody))
        before = s.mine
        if away := clients.only(s.last.cpu().numpy()[clients.ids] < clients.round - 1):
            before = before | away.apply(self.catch_up, down=s.x)
        changes, mine = clients.each(self.difference, x, before)
        return MARINAState(x, s.g + clients.mean(changes), s.mine | mine, self.now(s.last, clients))

    def now(self, last: Tensor, clients: Clients) -> Tensor:
        """``last``, in which these clients take part in this round; after `each`, when it is known who arrived."""
        return last.index_fill(0, torch.from_numpy(clients.ids).to(last.device), clients.round)

    def probability(self, d: int, share: float) -> float:
        """p, for vectors of ``d`` coordinates and this share of the clients in a round."""
        return share / (1 + omega_of(self.compressor, d)) if self.p is None else self.p

    def dense(self, local: Local, x: Vector, _: Vector) -> tuple[Vector, Vector]:
        g = local.grad(x)
        return g, g if self.gradient == "full" else x

    def catch_up(self, local: Local, x: Vector) -> Vector:
        return local.grad(x) if self.gradient == "full" else x

    def difference(self, local: Local, x: Vector, mine: Vector) -> tuple[Packed, Vector]:
        if self.gradient == "full":
            g = local.grad(x)
            return self.compressor.compress(g - mine, local), g
        return self.compressor.compress(mean_difference(local, x, mine), local), x
