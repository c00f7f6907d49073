"""EXTRA: Shi, Ling, Wu, Yin, SIAM J. Optim. 2015 (arXiv 1404.6264), with W~ = (I + W) / 2.

    first:  x_i+ <- sum_l w_il x_l - eta grad f_i(x_i)
    then:   x_i+ <- x_i + sum_l w_il x_l - (x_i' + sum_l w_il x_l') / 2 - eta (grad f_i(x_i) - grad f_i(x_i'))

where x' is the previous iterate. A corrected D-PSGD: exact on heterogeneous data with a constant step. W must be
symmetric, and everybody takes part in every round. Each node sends 1 vector to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import everybody, mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class ExtraState(NamedTuple):
    x: Kept[Vector]     # [n, d] every node's own model
    pull: Kept[Vector]  # [n, d] (x' + W x') / 2 - eta grad f(x') of the round before; 0 at first


@dataclass(frozen=True)
class Extra:
    """Exact first-order algorithm: each round takes back the error of the one before.

    Args:
        lr: step size eta.
    """

    lr: float = 0.1
    server = False
    no_rule = "its correction is that of a linear mixing"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> ExtraState:
        return ExtraState(clients.keep(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: ExtraState, clients: Clients) -> ExtraState:
        everybody(clients, "Extra")
        sent, g = clients.each(self.gradient, None, s.x)
        mixed = clients.mix(sent, symmetric=True)
        step = self.first if clients.round == 1 else self.next
        return ExtraState(*clients.apply(step, s.x, mixed, g, s.pull))

    def gradient(self, local: Local, _: None, x: Vector) -> tuple[Vector, Vector]:
        return x, mean_gradient(local, x)

    def first(self, local: Local, x: Vector, mixed: Vector, g: Vector, _: Vector) -> tuple[Vector, Vector]:
        eta = self.lr * local.decay
        return mixed - eta * g, (x + mixed) / 2 - eta * g

    def next(self, local: Local, x: Vector, mixed: Vector, g: Vector, pull: Vector) -> tuple[Vector, Vector]:
        eta = self.lr * local.decay
        return x + mixed - eta * g - pull, (x + mixed) / 2 - eta * g
