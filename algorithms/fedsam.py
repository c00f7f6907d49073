"""FedSAM: Qu, Li, Duan, Liu, Tang, Lu, ICML 2022 (arXiv 2206.02618), Algorithm 1.

    client i:  y <- x;   K times:  g <- grad f_i(y; B);   e <- rho g / ||g||;   y <- y - eta grad f_i(y + e; B)
               send y - x
    server:    x <- x + eta_g mean_S (y_i - x)

rho = 0 is FedAvg. Weight decay is a part of f_i here, so it is in g as well; with local.weight_decay_mode "step" it is
in neither gradient but in the step, and clipping with local.clip_mode "direction" leaves g alone, as in the code of
FedSpeed's authors. Down 1 vector, up 1 vector for each client of the cohort S; two gradients a step, of the same
minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import sam_gradient
from fedsim import Batch, Clients, Local, Vector
from fedsim.checks import non_negative, positive


class FedSAMState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class FedSAM:
    """Federated averaging of sharpness-aware local steps.

    Args:
        lr: local step size eta.
        rho: radius of the ascent step.
        server_lr: server step size eta_g.
    """

    lr: float = 0.1
    rho: float = 0.01
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        non_negative(self, "rho")

    def init(self, x: Vector, clients: Clients) -> FedSAMState:
        return FedSAMState(x)

    def round(self, s: FedSAMState, clients: Clients) -> FedSAMState:
        dx = clients.mean(clients.each(self.client, s.x))
        return FedSAMState(s.x + self.server_lr * dx)

    def client(self, local: Local, x: Vector) -> Vector:
        def step(y: Vector, batch: Batch, eta: Vector) -> Vector:
            return local.descend(y, sam_gradient(local, y, batch, self.rho), eta)

        return local.fold(step, x, self.lr * local.decay) - x
