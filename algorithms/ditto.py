"""Ditto: Li, Hu, Beirami, Smith, ICML 2021 (arXiv 2012.04221), Algorithm 1, with FedAvg for the global model.

    client i:  y <- x;   K times:  y <- y - eta grad f_i(y; B),
                                   v_i <- v_i - eta_p (grad f_i(v_i; B) + lambda (v_i - x));   send y - x
    server:    x <- x + mean_S (y_i - x)

The personal model v_i never travels; x is the model that the client has received. With lambda = 0 each v_i is trained
on local data alone; with lambda eta_p = 1 every step begins at x. Both models take the same minibatches.
Down 1 vector, up 1 vector for each client of the cohort S; two gradients a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import non_negative, positive


class DittoState(NamedTuple):
    x: Vector  # [d] server model
    personal: Kept[Vector]  # [n, d] clients' own models v_i


@dataclass(frozen=True)
class Ditto:
    """A global model by FedAvg, and a personal model of each client that is held near it.

    Args:
        lr: local step size eta.
        personal_lr: step size eta_p of the personal model; ``lr`` by default.
        lam: weight lambda of the pull to the global model; the paper tries 0.05, 0.1, 1 and 2.
    """

    lr: float = 0.1
    personal_lr: float | None = None
    lam: float = 0.1
    personal = True  # the state has a model of each client

    def __post_init__(self) -> None:
        positive(self, "lr")
        if self.personal_lr is not None:
            positive(self, "personal_lr")
        non_negative(self, "lam")

    def init(self, x: Vector, clients: Clients) -> DittoState:
        return DittoState(x, clients.keep(x))

    def round(self, s: DittoState, clients: Clients) -> DittoState:
        dx, v = clients.each(self.client, s.x, s.personal)
        return DittoState(s.x + clients.mean(dx), s.personal | v)

    def client(self, local: Local, x: Vector, v: Vector) -> tuple[Vector, Vector]:
        def step(
            carry: tuple[Vector, Vector], batch: Batch, x: Vector, eta: Vector, eta_p: Vector
        ) -> tuple[Vector, Vector]:
            y, v = carry
            y = local.descend(y, local.grad(y, batch), eta)
            return y, v - eta_p * (local.grad(v, batch) + self.lam * (v - x))

        own = self.lr if self.personal_lr is None else self.personal_lr
        y, v = local.fold(step, (x, v), x, self.lr * local.decay, own * local.decay)
        return y - x, v
