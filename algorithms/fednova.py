"""FedNova: Wang, Liu, Liang, Joshi, Poor, NeurIPS 2020 (arXiv 2007.07481).

    client i:  y <- x;   tau_i times:  m <- rho m + grad f_i(y; B),  y <- y - eta m
               a_i = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho);   send (y - x) / a_i and a_i
    server:    tau_eff <- mean_S a_i;   x <- x + eta_g tau_eff mean_S (y_i - x) / a_i

a_i is the paper's ||a_i||_1, the total weight of the gradients in a client's update; without momentum rho it is tau_i,
the number of its steps. Every client thus counts once, however many steps it takes, and x moves towards the minimiser
of sum_i p_i f_i; FedAvg's moves towards that of sum_i p_i tau_i f_i. With equal tau_i it is FedAvg. m starts at zero in
every round.
Down 1 vector, up 1 vector and 1 number for each client of the cohort S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from algorithms.parts import heavy_ball, plain_steps
from fedsim import Clients, Local, Vector
from fedsim.checks import in_range, positive


class FedNovaState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class FedNova:
    """Averages normalised updates, for clients whose numbers of local steps differ.

    Args:
        lr: local step size eta.
        momentum: heavy-ball coefficient rho of the local steps; the buffer is reset each round.
        server_lr: server step size eta_g; 1 is the paper's.
    """

    lr: float = 0.1
    momentum: float = 0.0
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        in_range(self, "momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> FedNovaState:
        return FedNovaState(x)

    def round(self, s: FedNovaState, clients: Clients) -> FedNovaState:
        d, tau_eff = clients.mean(clients.each(self.client, s.x))
        return FedNovaState(s.x + self.server_lr * tau_eff * d)

    def client(self, local: Local, x: Vector) -> tuple[Vector, Tensor]:
        plain_steps(local, "FedNova counts gradients as SGD does; FedNova.momentum is a heavy ball")
        rho, tau = self.momentum, local.steps
        a = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        return (heavy_ball(local, x, self.lr, rho) - x) / a, a
