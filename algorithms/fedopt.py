"""FedOpt: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, ICLR 2021 (arXiv 2003.00295), Algorithm 2.

    client i:  y <- x;   K times:  y <- y - eta_l grad f_i(y; B);   send y - x
    server:    Delta <- mean_S (y_i - x);   m <- beta1 m + (1 - beta1) Delta
               adagrad:  v <- v + Delta^2
               yogi:     v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)
               adam:     v <- beta2 v + (1 - beta2) Delta^2
               x <- x + eta m / (sqrt(v) + tau)

All operations are coordinate-wise. m starts at 0 and v at v0: by default tau^2, the smallest value that the paper
allows; published code (FL-Simulator) starts at 0. Unlike in Adam, there is no bias correction.
Down 1 vector, up 1 vector for each client of the cohort S; m and v stay at the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Local, Vector
from fedsim.checks import in_range, non_negative, one_of, positive


class FedOptState(NamedTuple):
    x: Vector  # [d] server model
    m: Vector  # [d] first moment of the mean updates
    v: Vector  # [d] their second moment, a sum for "adagrad"


@dataclass(frozen=True)
class FedOpt:
    """Adaptive steps at the server: FedAdam, FedYogi, FedAdagrad.

    Args:
        lr: local step size eta_l.
        server_lr: server step size eta: about how far a coordinate moves in a round.
        optimizer: rule for the second moment v: "adam", "yogi" or "adagrad".
        beta1: decay of m; the paper's experiments have 0 with "adagrad", and 0.9 otherwise.
        beta2: decay of v; "adagrad" has none.
        tau: added to sqrt(v); the smaller, the more adaptive. The paper's experiments have 0.001.
        v0: initial v of every coordinate; tau^2 by default.
    """

    lr: float = 0.1
    server_lr: float = 0.1
    optimizer: Literal["adagrad", "adam", "yogi"] = "adam"
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 0.001
    v0: float | None = None

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr", "tau")
        if self.v0 is not None:
            non_negative(self, "v0")
        one_of(self, "optimizer", ("adagrad", "adam", "yogi"))
        in_range(self, "beta1", 0, 1)
        in_range(self, "beta2", 0, 1)

    def init(self, x: Vector, clients: Clients) -> FedOptState:
        return FedOptState(x, torch.zeros_like(x), torch.full_like(x, self.tau**2 if self.v0 is None else self.v0))

    def round(self, s: FedOptState, clients: Clients) -> FedOptState:
        delta = clients.mean(clients.each(self.client, s.x))
        m, v = self.beta1 * s.m + (1 - self.beta1) * delta, self.second(s.v, delta**2)
        return FedOptState(s.x + self.server_lr * m / (v.sqrt() + self.tau), m, v)

    def second(self, v: Vector, square: Vector) -> Vector:
        """The new v, given Delta^2."""
        if self.optimizer == "adagrad":
            return v + square
        if self.optimizer == "yogi":
            return v - (1 - self.beta2) * square * (v - square).sign()
        return self.beta2 * v + (1 - self.beta2) * square

    def client(self, local: Local, x: Vector) -> Vector:
        return local_sgd(local, x, self.lr) - x
