"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, MLSys 2020 (arXiv 1812.06127), Algorithm 2.

    client i:  y <- x;   K_i times:  y <- y - eta (grad f_i(y; B) + mu (y - x));   send y - x
    server:    x <- x + eta_g mean_S (y_i - x)

The paper's clients minimise f_i(y) + (mu/2) ||y - x||^2 inexactly, by any solver; here by K_i gradient steps, as is
usual. eta_g = 1 is the paper's. mu = 0, or one step a round, is FedAvg. With local.clip_mode "direction" what is
clipped is grad f_i(y; B) - mu x, as in the code of FL-Simulator, which adds mu y after clipping, like weight decay.
Down 1 vector, up 1 vector for each client of the cohort S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fedsim import Batch, Clients, Local, Vector
from fedsim.checks import non_negative, positive


class FedProxState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class FedProx:
    """Federated averaging with a proximal term that holds clients near the server's model.

    Args:
        lr: local step size eta; below 2 / mu.
        mu: weight of the proximal term (mu/2) ||y - x||^2; the paper tries 0.001, 0.01, 0.1 and 1.
        server_lr: server step size eta_g.
    """

    lr: float = 0.1
    mu: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        non_negative(self, "mu")

    def init(self, x: Vector, clients: Clients) -> FedProxState:
        return FedProxState(x)

    def round(self, s: FedProxState, clients: Clients) -> FedProxState:
        dx = clients.mean(clients.each(self.client, s.x))
        return FedProxState(s.x + self.server_lr * dx)

    def client(self, local: Local, x: Vector) -> Vector:
        def step(y: Vector, batch: Batch, x: Vector, eta: Vector) -> Vector:
            return local.descend(y, local.grad(y, batch) + self.mu * (y - x), eta, prox=self.mu)

        return local.fold(step, x, x, self.lr * local.decay) - x
