"""FedCM: Xu, Wang, Wang, Yao, 2021 (arXiv 2106.10874): client-level momentum.

    client i:  y <- x;   K_i times:  y <- y - eta (alpha grad f_i(y; B) + (1 - alpha) Delta);   send y - x and K_i
    server:    x <- x + eta_g mean_S (y_i - x);   Delta <- -mean_S (y_i - x) / (eta mean_S K_i)

Delta, 0 at first, is the cohort's mean direction per step, with the eta of its own round; the first round thus has the
step size alpha eta. The paper has one K for all clients; where theirs differ, each sends its own. alpha = 1 is FedAvg,
and any alpha has the fixed point of FedAvg with the step size alpha eta. Weight decay and clipping belong to grad f_i
here, so alpha scales them; published code adds the decay to the step, outside of alpha (local.weight_decay_mode
"step"), and clips the gradient plus the correction (local.clip_mode "direction"). Delta then holds both.
Down 2 vectors, up 1 vector and 1 number for each client of the cohort S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.parts import plain_steps
from fedsim import Batch, Clients, Local, Vector
from fedsim.checks import positive, share


class FedCMState(NamedTuple):
    x: Vector  # [d] server model
    delta: Vector  # [d] mean direction of the last cohort's local steps


@dataclass(frozen=True)
class FedCM:
    """Local steps along a mean of the client's gradient and the last round's direction.

    Args:
        lr: local step size eta.
        alpha: share of the client's own gradient in a step.
        server_lr: server step size eta_g.
    """

    lr: float = 0.1
    alpha: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        share(self, "alpha")

    def init(self, x: Vector, clients: Clients) -> FedCMState:
        return FedCMState(x, torch.zeros_like(x))

    def round(self, s: FedCMState, clients: Clients) -> FedCMState:
        dx, steps = clients.mean(clients.each(self.client, (s.x, s.delta)))
        eta = self.lr * clients.decay                      # 0 at the end of some schedules, where nothing moves
        return FedCMState(s.x + self.server_lr * dx, torch.where(eta > 0, -dx / (eta * steps), s.delta))

    def client(self, local: Local, down: tuple[Vector, Vector]) -> tuple[Vector, Tensor]:
        def step(y: Vector, batch: Batch, pull: Vector, eta: Vector) -> Vector:
            return local.descend(y, self.alpha * local.grad(y, batch) + pull, eta)

        plain_steps(local, "FedCM divides by K eta, as for SGD; use FedAvg with this optimiser, or SGD")
        x, delta = down
        y = local.fold(step, x, (1 - self.alpha) * delta, self.lr * local.decay)
        return y - x, local.steps
