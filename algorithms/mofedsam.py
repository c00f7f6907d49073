"""MoFedSAM: Qu, Li, Duan, Liu, Tang, Lu, ICML 2022 (arXiv 2206.02618), Algorithm 2.

    client i:  y <- x;   K_i times:  g <- grad f_i(y; B);   e <- rho g / ||g||
                                     y <- y - eta (alpha grad f_i(y + e; B) + (1 - alpha) Delta)
               send y - x and K_i
    server:    x <- x + eta_g mean_S (y_i - x);   Delta <- -mean_S (y_i - x) / (eta mean_S K_i)

FedCM's momentum with FedSAM's gradient: rho = 0 is FedCM, alpha = 1 FedSAM. Delta, 0 at first, is as in FedCM, and so
are weight decay and clipping at the step (local.weight_decay_mode, local.clip_mode).
Down 2 vectors, up 1 vector and 1 number for each client of the cohort S; two gradients a step, of the same minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.parts import plain_steps, sam_gradient
from fedsim import Batch, Clients, Local, Vector
from fedsim.checks import non_negative, positive, share


class MoFedSAMState(NamedTuple):
    x: Vector  # [d] server model
    delta: Vector  # [d] mean direction of the last cohort's local steps


@dataclass(frozen=True)
class MoFedSAM:
    """Sharpness-aware local steps that lean towards the last round's direction.

    Args:
        lr: local step size eta.
        rho: radius of the ascent step.
        alpha: share of the client's own gradient in a step.
        server_lr: server step size eta_g.
    """

    lr: float = 0.1
    rho: float = 0.1
    alpha: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        non_negative(self, "rho")
        share(self, "alpha")

    def init(self, x: Vector, clients: Clients) -> MoFedSAMState:
        return MoFedSAMState(x, torch.zeros_like(x))

    def round(self, s: MoFedSAMState, clients: Clients) -> MoFedSAMState:
        dx, steps = clients.mean(clients.each(self.client, (s.x, s.delta)))
        eta = self.lr * clients.decay                      # 0 at the end of some schedules, where nothing moves
        return MoFedSAMState(s.x + self.server_lr * dx, torch.where(eta > 0, -dx / (eta * steps), s.delta))

    def client(self, local: Local, down: tuple[Vector, Vector]) -> tuple[Vector, Tensor]:
        def step(y: Vector, batch: Batch, pull: Vector, eta: Vector) -> Vector:
            return local.descend(y, self.alpha * sam_gradient(local, y, batch, self.rho) + pull, eta)

        plain_steps(local, "MoFedSAM divides by K eta, as for SGD; use FedSAM with this optimiser, or SGD")
        x, delta = down
        y = local.fold(step, x, (1 - self.alpha) * delta, self.lr * local.decay)
        return y - x, local.steps
