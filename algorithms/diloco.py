"""DiLoCo: Douillard, Feng, Rusu et al. 2023 (arXiv 2311.08105), Algorithm 1.

    worker i:  y_i <- x;   H times an inner step (AdamW in the paper);   send y_i - x
    server:    D <- -mean_i (y_i - x);   m <- mu m + D
               x <- x - alpha (D + mu m)    (Nesterov in PyTorch's form);    x <- x - alpha m    (heavy ball)

alpha = 1 and mu = 0 is FedAvg, called Local SGD with everybody taking part; one inner step is SGD with Nesterov's
momentum; one worker is Lookahead. Down 1 vector, up 1 vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Local, Vector
from fedsim.checks import in_range, positive


class DiLoCoState(NamedTuple):
    x: Vector  # [d] server model
    m: Vector  # [d] outer momentum


@dataclass(frozen=True)
class DiLoCo:
    """Local steps with an outer optimiser, SGD with Nesterov's momentum.

    Args:
        lr: inner step size eta.
        outer_lr: outer step size alpha.
        outer_momentum: mu.
        nesterov: Nesterov's momentum; otherwise heavy ball.
    """

    lr: float = 0.1
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    nesterov: bool = True
    fixed_workers = True

    def __post_init__(self) -> None:
        positive(self, "lr", "outer_lr")
        in_range(self, "outer_momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> DiLoCoState:
        return DiLoCoState(x, torch.zeros_like(x))

    def round(self, s: DiLoCoState, clients: Clients) -> DiLoCoState:
        D = -clients.mean(clients.each(self.client, s.x))
        m = self.outer_momentum * s.m + D
        step = D + self.outer_momentum * m if self.nesterov else m
        return DiLoCoState(s.x - self.outer_lr * step, m)

    def client(self, local: Local, x: Vector) -> Vector:
        return local_sgd(local, x, self.lr) - x
