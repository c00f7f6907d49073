"""FedADMM: Gong, Li, Freris, ICDE 2022 (arXiv 2204.03529).

    client i:  y <- x;   K times:  y <- y - eta (grad f_i(y; B) + u_i + rho (y - x))
               u_i <- u_i + rho (y - x);   z_i+ <- y + u_i / rho;   send z_i+ - z_i;   z_i <- z_i+
    server:    x <- x + eta_g mean_S (z_i+ - z_i)

u_i is the dual variable of the constraint y_i = x, 0 at first, and z_i the augmented model, x at first. With
eta_g = |S| / n, the default, x is the mean of the z_i of all n clients, whoever takes part, and the minimiser of f is a
fixed point; with eta_g = 1, which the paper uses as well, x follows the active clients only. Under full participation
the two agree, and are FedDyn with alpha = rho and u_i the negative of its gradient: FedSpeed(rho=0, lam=1 / rho).
Down 1 vector, up 1 vector for each client of the cohort S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import positive


class FedADMMState(NamedTuple):
    x: Vector  # [d] server model
    u: Kept[Vector]  # [n, d] each client's dual variable
    z: Kept[Vector]  # [n, d] its augmented model y + u / rho of its last round


@dataclass(frozen=True)
class FedADMM:
    """Alternating direction method of multipliers, with local gradient steps for the primal variables.

    Args:
        lr: local step size eta; below 2 / rho.
        rho: penalty of the augmented Lagrangian.
        server_lr: server step size eta_g; the cohort's share of all clients by default.
    """

    lr: float = 0.1
    rho: float = 0.1
    server_lr: float | None = None

    def __post_init__(self) -> None:
        positive(self, "lr", "rho")
        if self.server_lr is not None:
            positive(self, "server_lr")

    @property
    def sums(self) -> tuple[int, ...]:
        """The server adds up z_i+ - z_i, where x is the mean of all z_i."""
        return (0,) if self.server_lr is None else ()

    def init(self, x: Vector, clients: Clients) -> FedADMMState:
        return FedADMMState(x, clients.keep(torch.zeros_like(x)), clients.keep(x))

    def round(self, s: FedADMMState, clients: Clients) -> FedADMMState:
        sent, u, z = clients.each(self.client, s.x, s.u, s.z)
        eta_g = clients.fraction if self.server_lr is None else self.server_lr
        return FedADMMState(s.x + eta_g * clients.mean(sent), s.u | u, s.z | z)

    def client(self, local: Local, x: Vector, u: Vector, z: Vector) -> tuple[Vector, Vector, Vector]:
        def step(y: Vector, batch: Batch, x: Vector, u: Vector, eta: Vector) -> Vector:
            return local.descend(y, local.grad(y, batch) + u + self.rho * (y - x), eta, prox=self.rho)

        y = local.fold(step, x, x, u, self.lr * local.decay)
        u = u + self.rho * (y - x)
        new = y + u / self.rho
        return new - z, u, new
