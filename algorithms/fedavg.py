"""FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, AISTATS 2017 (arXiv 1602.05629), Algorithm 1.

    client i:  y <- x;   K times:  m <- theta m + grad f_i(y; B),  y <- y - eta m;   send y - x
    server:    x <- x + eta_g mean_S (y_i - x)

theta = 0 and eta_g = 1 are the paper's. The momentum buffer m starts at zero in every round and never travels.
Down 1 vector, up 1 vector for each client of the cohort S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import heavy_ball, local_sgd, one_momentum
from fedsim import Clients, Local, Vector
from fedsim.checks import in_range, positive


class FedAvgState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging.

    Args:
        lr: local step size eta.
        server_lr: server step size eta_g.
        momentum: heavy-ball coefficient theta of the local steps; the buffer is reset each round.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        in_range(self, "momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> FedAvgState:
        return FedAvgState(x)

    def round(self, s: FedAvgState, clients: Clients) -> FedAvgState:
        dx = clients.each(self.client, s.x)
        return FedAvgState(s.x + self.server_lr * clients.mean(dx))

    def client(self, local: Local, x: Vector) -> Vector:
        one_momentum(local, self)
        if self.momentum:
            return heavy_ball(local, x, self.lr, self.momentum) - x
        return local_sgd(local, x, self.lr) - x
