"""DFedAvg and DFedAvgM: Sun, Li, Wang, IEEE TPAMI 2023 (arXiv 2104.11375): decentralized federated averaging.

    node i:  y <- x_i;   K times:  m <- theta m + grad f_i(y; B),  y <- y - eta m          (m starts at 0 each round)
    order "ATC" (adapt, then combine):   x_i <- sum_l [W^Q]_il y_l
    order "CTA" (combine, then adapt):   the local steps start from sum_l [W^Q]_il x_l, and x_i <- y

theta = 0 is DFedAvg, theta > 0 DFedAvgM. With W = 1 1^T / n and Q = 1 it is FedAvg with everybody taking part.
Each node sends Q vectors to each neighbour a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from algorithms.parts import heavy_ball, one_momentum
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import at_least_one, in_range, one_of, positive


class DFedAvgState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model


@dataclass(frozen=True)
class DFedAvg:
    """Local steps, then gossip with the neighbours; no server. With momentum it is DFedAvgM.

    Args:
        lr: local step size eta.
        momentum: heavy-ball coefficient theta of the local steps; the buffer is reset each round.
        gossip_steps: exchanges Q with the neighbours a round.
        order: "ATC" trains, then averages; "CTA" averages, then trains.
    """

    lr: float = 0.1
    momentum: float = 0.0
    gossip_steps: int = 1
    order: Literal["ATC", "CTA"] = "ATC"
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr")
        in_range(self, "momentum", 0, 1)
        at_least_one(self, "gossip_steps")
        one_of(self, "order", ("ATC", "CTA"))

    def init(self, x: Vector, clients: Clients) -> DFedAvgState:
        return DFedAvgState(clients.keep(x))

    def round(self, s: DFedAvgState, clients: Clients) -> DFedAvgState:
        if self.order == "CTA":
            mixed = clients.mix(clients.each(self.share, None, s.x), self.gossip_steps)
            return DFedAvgState(s.x | clients.apply(self.train, mixed))
        return DFedAvgState(s.x | clients.mix(clients.each(self.client, None, s.x), self.gossip_steps))

    def share(self, local: Local, _: None, x: Vector) -> Vector:
        return x

    def client(self, local: Local, _: None, x: Vector) -> Vector:
        return self.train(local, x)

    def train(self, local: Local, x: Vector) -> Vector:
        one_momentum(local, self)
        return heavy_ball(local, x, self.lr, self.momentum)
