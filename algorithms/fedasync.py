"""FedAsync: Xie, Koyejo, Gupta 2019 (arXiv 1903.03934), Algorithm 1: a server step with every arrival.

    client i, when a place is free:  y <- x_tau;   K steps on f_i(y) + (rho / 2) ||y - x_tau||^2;   send y
    server, with every message:  x <- (1 - alpha_t) x + alpha_t y,   alpha_t = alpha s(t - tau)

t - tau is the number of server steps since the client began, s a weight of staleness. Fast clients count more often,
which moves the model towards their data. In a synchronous round y is the clients' mean. Down 1 vector, up 1 vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import Staleness, check_staleness, staleness_weight
from fedsim import Batch, Clients, Local, Sent, Vector
from fedsim.checks import at_least_one, non_negative, positive, share


class FedAsyncState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class FedAsync:
    """Asynchronous mixing of every arriving model.

    Args:
        lr: local step size eta.
        alpha: mixing weight of a model that is not late.
        rho: proximal coefficient of the local steps.
        staleness: weight s of a model that is tau steps late: "constant" 1, "polynomial" (1 + tau)^-a, or "hinge", 1 up
            to tau = b and 1 / (a (tau - b) + 1) above.
        a: its exponent or slope.
        b: delay up to which "hinge" is 1.
        buffer: models in a server step, which are averaged; 1 is the paper's.
    """

    lr: float = 0.1
    alpha: float = 0.6
    rho: float = 0.0
    staleness: Staleness = "polynomial"
    a: float = 0.5
    b: float = 4.0
    buffer: int = 1

    def __post_init__(self) -> None:
        positive(self, "lr")
        share(self, "alpha")
        non_negative(self, "rho")
        at_least_one(self, "buffer")
        check_staleness(self)

    def init(self, x: Vector, clients: Clients) -> FedAsyncState:
        return FedAsyncState(x)

    def round(self, s: FedAsyncState, clients: Clients) -> FedAsyncState:
        sent, s = self.dispatch(s, clients)
        return self.arrive(s, sent, clients)

    def dispatch(self, s: FedAsyncState, clients: Clients) -> tuple[Sent[Vector], FedAsyncState]:
        return clients.each(self.client, s.x), s

    def arrive(self, s: FedAsyncState, sent: Sent[Vector], clients: Clients) -> FedAsyncState:
        alpha = self.alpha * float(staleness_weight(self.staleness, clients.stale, self.a, self.b).mean())
        return FedAsyncState((1 - alpha) * s.x + alpha * clients.mean(sent))

    def client(self, local: Local, x: Vector) -> Vector:
        def step(y: Vector, batch: Batch, eta: Vector, x: Vector) -> Vector:
            return local.descend(y, local.grad(y, batch) + self.rho * (y - x), eta, prox=self.rho)

        return local.fold(step, x, self.lr * local.decay, x)
