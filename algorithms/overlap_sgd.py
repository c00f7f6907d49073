"""Overlap-Local-SGD: Wang, Liang, Joshi, ICASSP 2020 (arXiv 2002.09539), with anchor momentum.

    worker i:  tau times:  x_i <- x_i - eta grad f_i(x_i; B);   x_i <- (1 - alpha) x_i + alpha z;   send x_i
    anchor:    v <- beta v + mean_i x_i - z;   z <- z + v,   which arrives within the next round's local steps

Workers keep their own models and are only pulled towards the anchor z, which is the model of this method. Down 1
vector, up 1 vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import in_range, positive, share


class OverlapSGDState(NamedTuple):
    x: Vector  # [d] anchor z
    v: Vector  # [d] anchor momentum
    x_i: Kept[Vector]  # [n, d] every worker's own model


@dataclass(frozen=True)
class OverlapSGD:
    """Local SGD whose workers are pulled to an anchor that is averaged behind their local steps.

    Args:
        lr: local step size eta.
        alpha: strength of the pull.
        momentum: anchor momentum beta.
    """

    lr: float = 0.1
    alpha: float = 0.6
    momentum: float = 0.7
    fixed_workers = True

    def __post_init__(self) -> None:
        positive(self, "lr")
        share(self, "alpha")
        in_range(self, "momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> OverlapSGDState:
        return OverlapSGDState(x, torch.zeros_like(x), clients.keep(x))

    def round(self, s: OverlapSGDState, clients: Clients) -> OverlapSGDState:
        sent, x_i = clients.each(self.client, s.x, s.x_i)
        v = self.momentum * s.v + clients.mean(sent, behind=1.0) - s.x
        return OverlapSGDState(s.x + v, v, s.x_i | x_i)

    def client(self, local: Local, z: Vector, x_i: Vector) -> tuple[Vector, Vector]:
        x_i = (1 - self.alpha) * local_sgd(local, x_i, self.lr) + self.alpha * z
        return x_i, x_i
