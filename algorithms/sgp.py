"""SGP, stochastic gradient push: Assran, Loizou, Ballas, Rabbat, ICML 2019 (arXiv 1811.10792), Algorithm 1.

    node i:  u_i <- u_i - eta grad f_i(x_i; B)        at the de-biased x_i = u_i / w_i
             u_i <- sum_j p_ij u_j;   w_i <- sum_j p_ij w_j        (w_i = 1 at first)
             x_i <- u_i / w_i

P is column-stochastic: each node divides what it has among those that hear it, so any strongly connected directed
graph will do and the total mass sum_i w_i = n is kept. With ``local.steps`` above 1 a node makes several steps from x_i
before it pushes.
Each node sends 1 vector and 1 number to each out-neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import positive


class SGPState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's de-biased model u_i / w_i
    w: Kept[Vector]  # [n] its push-sum weight, 0-dim


@dataclass(frozen=True)
class SGP:
    """Push-sum gossip for directed graphs.

    Args:
        lr: local step size eta.
    """

    lr: float = 0.1
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> SGPState:
        return SGPState(clients.keep(x), clients.keep(torch.ones((), dtype=x.dtype, device=x.device)))

    def round(self, s: SGPState, clients: Clients) -> SGPState:
        sent, _ = clients.each(self.client, None, s.x.beside(s.w))
        _, mine = clients.each(self.debias, None, clients.push(sent))
        return SGPState(s.x | mine.part(0), s.w | mine.part(1))

    def client(self, local: Local, _: None, mine: tuple[Vector, Vector]) -> tuple[tuple[Vector, Vector], Vector]:
        def step(y: Vector, batch: Batch, eta: Vector) -> Vector:
            return y - eta * local.grad(y, batch)

        x, w = mine
        y = local.fold(step, x, self.lr * local.decay)
        return (w * x + (y - x), w), w

    def debias(self, local: Local, _: None, mine: tuple[Vector, Vector]) -> tuple[Vector, tuple[Vector, Vector]]:
        u, w = mine
        return w, (u / w, w)
