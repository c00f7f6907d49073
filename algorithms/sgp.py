"""SGP, stochastic gradient push: Assran, Loizou, Ballas, Rabbat, ICML 2019 (arXiv 1811.10792), Algorithm 1.

    node i:  u_i <- u_i - eta grad f_i(x_i; B)        at the de-biased x_i = u_i / w_i
             u_i <- sum_j p_ij u_j;   w_i <- sum_j p_ij w_j        (w_i = 1 at first)
             x_i <- u_i / w_i

P is column-stochastic: each node divides its mass among its out-neighbours and itself, so any strongly connected
directed graph will do, and the total mass sum_i w_i = n is preserved. With ``local.steps`` above 1 a node takes several
steps from x_i before it pushes.
Each node sends 1 vector and 1 number to each out-neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class SGPState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's de-biased model u_i / w_i
    w: Kept[Vector]  # [n] its push-sum weight, 0-dim


class Mass(NamedTuple):
    u: Vector  # [d] sum of weighted models
    w: Vector  # sum of weights, 0-dim


@dataclass(frozen=True)
class SGP:
    """Push-sum gossip for directed graphs.

    Args:
        lr: local step size eta.
    """

    lr: float = 0.1
    server = False
    no_rule = "it needs a mixing that preserves sums"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> SGPState:
        return SGPState(clients.keep(x), clients.keep(torch.ones((), dtype=x.dtype, device=x.device)))

    def round(self, s: SGPState, clients: Clients) -> SGPState:
        pushed = clients.push(clients.each(self.client, None, s.x, s.w))
        x, w = clients.apply(self.debias, pushed)
        return SGPState(s.x | x, s.w | w)

    def client(self, local: Local, _: None, x: Vector, w: Vector) -> Mass:
        return Mass(w * x + (local_sgd(local, x, self.lr) - x), w)

    def debias(self, local: Local, pushed: Mass) -> tuple[Vector, Vector]:
        return pushed.u / pushed.w, pushed.w
