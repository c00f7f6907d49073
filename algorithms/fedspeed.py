"""FedSpeed: Sun, Shen, Huang, Ding, Tao, ICLR 2023 (arXiv 2302.10429), Algorithm 1.

    client i:  y <- x;   K times with a fresh minibatch B:
                   g1 <- grad f_i(y; B);   g2 <- grad f_i(y + rho g1; B)      or rho g1 / ||g1||
                   y  <- y - eta ((1 - alpha) g1 + alpha g2 - h_i + (y - x) / lambda)
               h_i <- h_i - (y - x) / lambda;   send y - x, or y - x - lambda h_i where the server's rule is "active"
    server:    dual_avg = "active", the paper's:   x <- mean_S (y_i - lambda h_i)
               dual_avg = "all":                   x <- mean_S y_i - lambda mean_all h_i

h_i is the paper's prox-correction ghat_i. The two server rules agree under full participation; under partial
participation only "all", the rule of the authors' code, converges to the minimiser, so it is the default. The server
tracks the mean of all h_i from the messages alone, since h_i+ - h_i = -(y_i - x) / lambda. The code calls 1 / lambda
``lamb``. Weight decay is a part of f_i here, so it is in g1 as well; the authors' code adds it to the step
(local.weight_decay_mode "step"), and clips g2 - h_i - x / lambda there (local.clip_mode "direction").

FedSpeed(rho=0, lam=1 / alpha) is FedDyn with K gradient steps (Acar, Zhao, Matas, Mattina, Whatmough, Saligrama, ICLR
2021, arXiv 2111.04263): h_i is its client's grad L_i, hbar its server's h, and alpha its weight, 0.01 in its authors'
code. That code divides alpha by a client's weight where their data are unequal; here it is one for all.
Down 1 vector, up 1 vector, two gradients a step (one where rho or alpha is 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from algorithms.parts import EPS
from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import in_range, non_negative, one_of, positive


class FedSpeedState(NamedTuple):
    x: Vector  # [d] server model
    h: Kept[Vector]  # [n, d] prox-correction, one per client, never travels
    hbar: Vector  # [d] mean of all h_i, known to the server


@dataclass(frozen=True)
class FedSpeed:
    """Prox-corrected local training with a gradient perturbation; FedDyn where rho is 0 and lam 1 / its alpha.

    Args:
        lr: local step size eta; below lam.
        lam: weight lambda of the prox term ||y - x||^2 / (2 lambda).
        rho: ascent step of the gradient perturbation; 0 for none.
        alpha: share of the perturbed gradient in the step.
        normalize: divide the ascent step by the gradient's norm, as the authors' code does.
        dual_avg: which clients' corrections enter the server's model: "all", or the "active" ones as in the paper.
    """

    lr: float = 0.1
    lam: float = 10.0
    rho: float = 0.1
    alpha: float = 1.0
    normalize: bool = True
    dual_avg: Literal["all", "active"] = "all"

    def __post_init__(self) -> None:
        positive(self, "lr", "lam")
        non_negative(self, "rho")
        in_range(self, "alpha", 0, 1, closed=True)
        one_of(self, "dual_avg", ("all", "active"))

    def init(self, x: Vector, clients: Clients) -> FedSpeedState:
        return FedSpeedState(x, clients.keep(torch.zeros_like(x)), torch.zeros_like(x))

    def round(self, s: FedSpeedState, clients: Clients) -> FedSpeedState:
        sent, h = clients.each(self.client, s.x, s.h)
        dx = clients.mean(sent)
        if self.dual_avg == "active":
            return FedSpeedState(s.x + dx, s.h | h, s.hbar)
        hbar = s.hbar - clients.fraction * dx / self.lam
        return FedSpeedState(s.x + dx - self.lam * hbar, s.h | h, hbar)

    def client(self, local: Local, x: Vector, h: Vector) -> tuple[Vector, Vector]:
        def step(y: Vector, batch: Batch, x: Vector, h: Vector, eta: Vector) -> Vector:
            g = local.grad(y, batch)
            if self.rho and self.alpha:
                rho = self.rho / (torch.linalg.vector_norm(g) + EPS) if self.normalize else self.rho
                perturbed = local.grad(y + rho * g, batch)
                g = perturbed if self.alpha == 1 else (1 - self.alpha) * g + self.alpha * perturbed
            return local.descend(y, g - h + (y - x) / self.lam, eta, prox=1 / self.lam)

        dx = local.fold(step, x, x, h, self.lr * local.decay) - x
        h = h - dx / self.lam
        return (dx if self.dual_avg == "all" else dx - self.lam * h), h
