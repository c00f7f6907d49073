"""Per-FedAvg: Fallah, Mokhtari, Ozdaglar, NeurIPS 2020 (arXiv 2002.07948), Algorithm 1, first-order variant (FO).

    client i:  y <- x;   K / 2 times, on two minibatches B, B':  z <- y - alpha grad f_i(y; B),
                                                                  y <- y - beta grad f_i(z; B');   send y - x
    server:    x <- x + mean_S (y_i - x)

The server's model is a starting point from which one gradient step suits each client. So it is the models after that
step that should be evaluated: evaluation.fine_tune 1 with fine_tune_lr alpha. The variant leaves out the second
derivatives of the exact gradient (I - alpha H(y; B'')) grad f_i(z; B'). Odd local steps adapt and even ones learn; if
their number is odd, the last has no effect.
Down 1 vector, up 1 vector for each client of the cohort S; one gradient for each minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import plain_steps
from fedsim import Batch, Clients, Local, Vector
from fedsim.checks import positive


class PerFedAvgState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class PerFedAvg:
    """Federated meta-learning: a model that one gradient step adapts to a client.

    Args:
        lr: local step size beta.
        alpha: step size of the adaptation.
    """

    lr: float = 0.1
    alpha: float = 0.05

    def __post_init__(self) -> None:
        positive(self, "lr", "alpha")

    def init(self, x: Vector, clients: Clients) -> PerFedAvgState:
        return PerFedAvgState(x)

    def round(self, s: PerFedAvgState, clients: Clients) -> PerFedAvgState:
        return PerFedAvgState(s.x + clients.mean(clients.each(self.client, s.x)))

    def client(self, local: Local, x: Vector) -> Vector:
        def step(
            carry: tuple[Vector, Vector, Vector], batch: Batch, alpha: Vector, beta: Vector
        ) -> tuple[Vector, Vector, Vector]:
            y, z, learns = carry
            g = local.grad(torch.where(learns > 0, z, y), batch)
            z = y - alpha * g
            return local.descend(y, g, beta * learns), z, 1 - learns

        plain_steps(local, "every other step of PerFedAvg stands still, as of SGD with a step size of 0")
        alpha, beta = self.alpha * local.decay, self.lr * local.decay
        return local.fold(step, (x, x, torch.zeros_like(alpha)), alpha, beta)[0] - x
