"""AD-PSGD: Lian, Zhang, Zhang, Liu, ICML 2018 (arXiv 1710.06952), Algorithm 1, with atomic averaging of pairs.

    node i, whenever it is free:  g_i <- grad f_i(x_i; B), the mean over the samples of the round's minibatches
    with g_i:  meet a neighbour j,   x_i, x_j <- (x_i + x_j) / 2;   x_i <- x_i - eta g_i

Nobody waits, so x_i may have been averaged with others since g_i was computed. The neighbour is drawn in proportion to
w_ij. Fast nodes step more often, which moves the nodes towards their minimisers. In synchronous rounds it is D-PSGD.
Two nodes that meet send 1 vector each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class ADPSGDState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model
    g: Kept[Vector]  # [n, d] the gradient that it computes


@dataclass(frozen=True)
class ADPSGD:
    """A stochastic gradient and an average with one neighbour, asynchronously.

    Args:
        lr: step size eta.
    """

    lr: float = 0.1
    server = False
    buffer = 1

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> ADPSGDState:
        return ADPSGDState(clients.keep(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: ADPSGDState, clients: Clients) -> ADPSGDState:
        return self.meet(self.dispatch(s, clients)[1], clients, clients)

    def dispatch(self, s: ADPSGDState, clients: Clients) -> tuple[None, ADPSGDState]:
        return None, s._replace(g=s.g | clients.apply(self.gradient, s.x))

    def arrive(self, s: ADPSGDState, _: None, clients: Clients) -> ADPSGDState:
        return self.meet(s, clients.met, clients)

    def meet(self, s: ADPSGDState, met: Clients, clients: Clients) -> ADPSGDState:
        x = s.x | met.mix(met.each(self.share, None, s.x))
        return s._replace(x=x | clients.apply(self.descend, x, s.g))

    def gradient(self, local: Local, x: Vector) -> Vector:
        return mean_gradient(local, x)

    def share(self, local: Local, _: None, x: Vector) -> Vector:
        return x

    def descend(self, local: Local, x: Vector, g: Vector) -> Vector:
        return x - self.lr * local.decay * g
