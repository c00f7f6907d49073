"""FedPAGE: Zhao, Li, Richtarik, 2021 (arXiv 2108.04755); its estimator is that of Li, Bao, Zhang, Richtarik, ICML 2021.

    round 1, and with probability p, by one coin for all:   everybody:  send grad f_i(x);   server:  g <- mean_all
    otherwise, client i of the cohort S:
        g_i <- g + grad f_i(x) - grad f_i(x');   y' <- x;   y <- x - eta g_i
        K - 1 times:  g_i <- g_i + grad f_i(y; B) - grad f_i(y'; B);   (y', y) <- (y, y - eta g_i)
        send (x - y) / (K eta);   server:  g <- mean_S
    server:  x' <- x;   x <- x - eta_g g

x' is the model of the round before. grad f_i without B is of a large batch, by default the whole shard. All K steps
count in the mean that a client sends: published code makes K + 1 of them and divides by K.
Down 1 vector, up 1 for all n clients with heads; down 3 vectors, up 1 for the cohort with tails: two large batches and
two gradients for each step but the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedsim import Batch, Clients, Local, Vector
from fedsim.checks import positive, share, whole


class FedPAGEState(NamedTuple):
    x: Vector  # [d] server model
    last: Vector  # [d] that of the round before, x'
    g: Vector  # [d] estimate of the gradient there


@dataclass(frozen=True)
class FedPAGE:
    """Local variance-reduced steps, with the gradient of all clients now and then.

    Args:
        lr: local step size eta.
        server_lr: server step size eta_g along the estimated gradient.
        p: probability of a round in which all clients send their gradients, above 0.
        large_batch: samples in the gradients that open a cohort's round; 0 for the client's whole shard.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    p: float = 0.2
    large_batch: int = 0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        share(self, "p")
        whole("FedPAGE.large_batch", self.large_batch, 0, ", where 0 is the whole shard")

    def init(self, x: Vector, clients: Clients) -> FedPAGEState:
        return FedPAGEState(x, x, torch.zeros_like(x))

    def round(self, s: FedPAGEState, clients: Clients) -> FedPAGEState:
        if clients.round == 1 or clients.toss(self.p):
            everybody = clients.population
            g = everybody.mean(everybody.each(self.heads, s.x))
        else:
            g = clients.mean(clients.each(self.tails, (s.x, s.last, s.g)))
        return FedPAGEState(s.x - self.server_lr * clients.decay * g, s.x, g)

    def heads(self, local: Local, x: Vector) -> Vector:
        return local.grad(x)

    def tails(self, local: Local, down: tuple[Vector, Vector, Vector]) -> Vector:
        def step(carry: tuple[Vector, Vector, Vector], batch: Batch, eta: Vector) -> tuple[Vector, Vector, Vector]:
            y_prev, y, g = carry
            g = g + local.grad(y, batch) - local.grad(y_prev, batch)
            return y, y - eta * g, g

        x, last, g = down
        eta = self.lr * local.decay                        # 0 at the end of some schedules, where nothing moves
        batch = local.sample(self.large_batch) if self.large_batch else None
        g = g + local.grad(x, batch) - local.grad(last, batch)
        y = local.fold(step, (x, x - eta * g, g), eta, skip=1)[1]
        return torch.where(eta > 0, (x - y) / (local.steps * eta), g)
