"""pFedMe: Dinh, Tran, Nguyen, NeurIPS 2020 (arXiv 2006.08848), Algorithm 1: Moreau envelopes of the clients' losses.

    client i:  w, theta <- x;   R times:  K times:  theta <- theta - eta_p (grad f_i(theta; B) + lambda (theta - w)),
                                          w <- w - eta lambda (w - theta);   theta_i <- theta;   send w - x
    server:    x <- x + beta mean_S (w_i - x)

A client descends along the gradient lambda (w - theta_i(w)) of F_i(w) = min_theta f_i(theta) + (lambda/2) ||theta -
w||^2, with theta_i(w) approached by K gradient steps on the minibatch from the last theta, as in the authors' code. The
personal model theta_i never travels and is not read again.
Down 1 vector, up 1 vector for each client of the cohort S; K gradients a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import at_least_one, positive
from fedsim.errors import ConfigError


class PFedMeState(NamedTuple):
    x: Vector  # [d] server model
    personal: Kept[Vector]  # [n, d] clients' own models theta_i


@dataclass(frozen=True)
class PFedMe:
    """Personal models that a proximal term holds near the server's model.

    Args:
        lr: step size eta of w; below 2 / lambda. The authors' runs on MNIST have 0.005.
        personal_lr: step size eta_p of theta; below 2 / lambda. Theirs: 0.1, or 0.09 for a network.
        lam: weight lambda of the proximal term; theirs is 15.
        inner_steps: gradient steps K on each minibatch.
        server_lr: server step size beta; they run 1, 2 and 4.
    """

    lr: float = 0.03
    personal_lr: float = 0.05
    lam: float = 15.0
    inner_steps: int = 5
    server_lr: float = 1.0
    personal = True  # the state has a model of each client

    def __post_init__(self) -> None:
        positive(self, "lr", "personal_lr", "lam", "server_lr")
        at_least_one(self, "inner_steps")
        for name in ("lr", "personal_lr"):
            if (step := getattr(self, name)) * self.lam >= 2:
                raise ConfigError(
                    f"PFedMe.{name} is {step} and lam {self.lam}; expected a product below 2, from which on the steps"
                    f" diverge: {name} below {2 / self.lam:g}"
                )

    def init(self, x: Vector, clients: Clients) -> PFedMeState:
        return PFedMeState(x, clients.keep(x))

    def round(self, s: PFedMeState, clients: Clients) -> PFedMeState:
        dx, theta = clients.each(self.client, s.x, s.personal)
        return PFedMeState(s.x + self.server_lr * clients.mean(dx), s.personal | theta)

    def client(self, local: Local, x: Vector, theta: Vector) -> tuple[Vector, Vector]:
        def step(carry: tuple[Vector, Vector], batch: Batch, eta: Vector, eta_p: Vector) -> tuple[Vector, Vector]:
            w, theta = carry
            for _ in range(self.inner_steps):
                theta = theta - eta_p * (local.grad(theta, batch) + self.lam * (theta - w))
            return local.descend(w, self.lam * (w - theta), eta), theta

        w, theta = local.fold(step, (x, x), self.lr * local.decay, self.personal_lr * local.decay)
        return w - x, theta
