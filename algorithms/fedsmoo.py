"""FedSMOO: Sun, Shen, Chen, Ding, Tao, ICML 2023 (arXiv 2305.11584), in the form of the authors' code (FL-Simulator).

    client i:  y <- x;   K times with a fresh minibatch B:
                   u <- grad f_i(y; B) - mu_i - s;   e <- rho u / ||u||;   mu_i <- mu_i + e - s
                   y <- y - eta (grad f_i(y + e; B) - h_i + (y - x) / lambda)
               h_i <- h_i - (y - x) / lambda;   send y - x and mu_i
    server:    hbar <- mean_all h_i;   x <- mean_S y_i - lambda hbar;   s <- rho mean_S mu_i / ||mean_S mu_i||

Two regularisers: h_i of FedDyn for a common model, mu_i for a common perturbation s. Signs and lambda are those of
FedSpeed here; the code has h_i in units of weights, lambda (-h_i), and calls 1 / lambda ``lamb``. As its comments say,
it simplifies the paper's s by dropping the perturbation of the last step. rho = 0 is FedDyn: FedSpeed(rho=0). Weight
decay and clipping at the step (local.weight_decay_mode, local.clip_mode) are as in FedSpeed.
Down 2 vectors, up 2 vectors for each client of the cohort S; two gradients a step, of the same minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import EPS
from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import non_negative, positive


class FedSMOOState(NamedTuple):
    x: Vector  # [d] server model
    s: Vector  # [d] common perturbation, of norm rho
    hbar: Vector  # [d] mean of all h_i, known to the server
    h: Kept[Vector]  # [n, d] each client's correction of its drift, never travels
    mu: Kept[Vector]  # [n, d] its correction of the perturbation


@dataclass(frozen=True)
class FedSMOO:
    """Dynamically regularised sharpness-aware local steps: one model and one perturbation for all clients.

    Args:
        lr: local step size eta; below lam.
        lam: weight lambda of the prox term ||y - x||^2 / (2 lambda).
        rho: radius of the ascent step; 0 for none.
    """

    lr: float = 0.1
    lam: float = 10.0
    rho: float = 0.1

    def __post_init__(self) -> None:
        positive(self, "lr", "lam")
        non_negative(self, "rho")

    def init(self, x: Vector, clients: Clients) -> FedSMOOState:
        zero = torch.zeros_like(x)
        return FedSMOOState(x, zero, zero, clients.keep(zero), clients.keep(zero))

    def round(self, s: FedSMOOState, clients: Clients) -> FedSMOOState:
        sent, h, mu = clients.each(self.client, (s.x, s.s), s.h, s.mu)
        dx, m = clients.mean(sent)
        hbar = s.hbar - clients.fraction * dx / self.lam
        common = self.rho * m / (torch.linalg.vector_norm(m) + EPS)
        return FedSMOOState(s.x + dx - self.lam * hbar, common, hbar, s.h | h, s.mu | mu)

    def client(
        self, local: Local, down: tuple[Vector, Vector], h: Vector, mu: Vector
    ) -> tuple[tuple[Vector, Vector], Vector, Vector]:
        def step(
            carry: tuple[Vector, Vector], batch: Batch, x: Vector, s: Vector, h: Vector, eta: Vector
        ) -> tuple[Vector, Vector]:
            y, mu = carry
            g = local.grad(y, batch)
            if self.rho:
                u = g - mu - s
                e = self.rho * u / (torch.linalg.vector_norm(u) + EPS)
                g, mu = local.grad(y + e, batch), mu + e - s
            return local.descend(y, g - h + (y - x) / self.lam, eta, prox=1 / self.lam), mu

        x, s = down
        y, mu = local.fold(step, (x, mu), x, s, h, self.lr * local.decay)
        return (y - x, mu), h - (y - x) / self.lam, mu
