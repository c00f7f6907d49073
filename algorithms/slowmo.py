"""SlowMo: Wang, Tantia, Ballas, Rabbat, ICLR 2020 (arXiv 1910.00643), Algorithm 1.

    worker i:  y_i <- x;   tau times:  y_i <- y_i - gamma_t grad f_i(y_i; B);   send y_i - x
    server:    u <- beta u + (x - mean_i y_i) / gamma_t;   x <- x - alpha gamma_t u

gamma_t is the inner step size in round t. With a constant one it is DiLoCo's heavy ball; alpha = 1 and beta = 0 is
FedAvg. Down 1 vector, up 1 vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Local, Vector
from fedsim.checks import in_range, positive


class SlowMoState(NamedTuple):
    x: Vector  # [d] server model
    u: Vector  # [d] slow momentum


@dataclass(frozen=True)
class SlowMo:
    """Local steps with slow momentum.

    Args:
        lr: inner step size gamma.
        outer_lr: slow step size alpha.
        outer_momentum: slow momentum beta.
    """

    lr: float = 0.1
    outer_lr: float = 1.0
    outer_momentum: float = 0.5
    fixed_workers = True

    def __post_init__(self) -> None:
        positive(self, "lr", "outer_lr")
        in_range(self, "outer_momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> SlowMoState:
        return SlowMoState(x, torch.zeros_like(x))

    def round(self, s: SlowMoState, clients: Clients) -> SlowMoState:
        dx = clients.mean(clients.each(self.client, s.x))
        gamma = self.lr * clients.decay                    # 0 at the end of some schedules, where nothing moves
        u = torch.where(gamma > 0, self.outer_momentum * s.u - dx / gamma, s.u)
        return SlowMoState(s.x - self.outer_lr * gamma * u, u)

    def client(self, local: Local, x: Vector) -> Vector:
        return local_sgd(local, x, self.lr) - x
