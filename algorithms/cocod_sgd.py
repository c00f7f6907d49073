"""CoCoD-SGD: Shen, Xu, Liu, Liang, Cheng, IJCAI 2019 (arXiv 1906.12043): computation and communication decoupled.

    worker i:  y_i <- x_i;   tau times:  y_i <- y_i - eta grad f_i(y_i; B);   x_i <- xbar + y_i - x_i;   send x_i
    server:    xbar <- mean_i x_i,   which arrives within the next round's local steps

A worker's model is the average at the beginning of the round plus its own progress in it. Down 1 vector, up 1 vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import local_sgd
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class CoCoDSGDState(NamedTuple):
    x: Vector  # [d] average xbar
    x_i: Kept[Vector]  # [n, d] every worker's own model


@dataclass(frozen=True)
class CoCoDSGD:
    """Local SGD whose models are averaged behind the next local steps.

    Args:
        lr: local step size eta.
    """

    lr: float = 0.1
    fixed_workers = True

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> CoCoDSGDState:
        return CoCoDSGDState(x, clients.keep(x))

    def round(self, s: CoCoDSGDState, clients: Clients) -> CoCoDSGDState:
        sent, x_i = clients.each(self.client, s.x, s.x_i)
        return CoCoDSGDState(clients.mean(sent, behind=1.0), s.x_i | x_i)

    def client(self, local: Local, xbar: Vector, x_i: Vector) -> tuple[Vector, Vector]:
        x_i = xbar + (local_sgd(local, x_i, self.lr) - x_i)
        return x_i, x_i
