"""FedBuff: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, AISTATS 2022 (arXiv 2106.06639): buffered asynchrony.

    client i, when a place is free:  y <- x;   K steps:  y <- y - eta grad f_i(y; B);   send y - x
    server, once `buffer` messages have arrived:  x <- x + eta_g (1 / buffer) sum_k s(tau_k) (y_k - x_k)

x_k is the model from which the k-th message's client began, tau_k the server steps since then, s a weight of staleness.
With `concurrency` clients under way that all take equally long, and a buffer of as many, it is FedAvg. Fast clients
count more often, which moves the model towards their data. Down 1 vector, up 1 vector for each message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import Staleness, check_staleness, local_sgd, staleness_weight
from fedsim import Clients, Local, Sent, Vector
from fedsim.checks import at_least_one, positive


class FedBuffState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class FedBuff:
    """Asynchronous averaging of updates, a buffer of them at a time.

    Args:
        lr: local step size eta.
        server_lr: server step size eta_g.
        buffer: messages in a server step.
        staleness: weight s of an update that is tau steps late: "constant" 1, "polynomial" (1 + tau)^-a, or "hinge", 1
            up to tau = b and 1 / (a (tau - b) + 1) above.
        a: its exponent or slope.
        b: delay up to which "hinge" is 1.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    buffer: int = 10
    staleness: Staleness = "polynomial"
    a: float = 0.5
    b: float = 4.0

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        at_least_one(self, "buffer")
        check_staleness(self)

    def init(self, x: Vector, clients: Clients) -> FedBuffState:
        return FedBuffState(x)

    def round(self, s: FedBuffState, clients: Clients) -> FedBuffState:
        sent, s = self.dispatch(s, clients)
        return self.arrive(s, sent, clients)

    def dispatch(self, s: FedBuffState, clients: Clients) -> tuple[Sent[Vector], FedBuffState]:
        return clients.each(self.client, s.x), s

    def arrive(self, s: FedBuffState, sent: Sent[Vector], clients: Clients) -> FedBuffState:
        late = self.staleness != "constant" and clients.stale.any()
        weights = staleness_weight(self.staleness, clients.stale, self.a, self.b) if late else None
        return FedBuffState(s.x + self.server_lr * clients.mean(sent, weights))

    def client(self, local: Local, x: Vector) -> Vector:
        return local_sgd(local, x, self.lr) - x
