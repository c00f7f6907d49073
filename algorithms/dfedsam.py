"""DFedSAM and DFedSAM-MGS: Shi, Shen, Wei, Sun, Yuan, Wang, Tao, ICML 2023 (arXiv 2302.04083).

    node i:  y <- x_i
             K times:  g <- grad f_i(y; B);   e <- rho g / ||g||;   y <- y - eta grad f_i(y + e; B)
             x_i <- sum_l [W^Q]_il y_l                     Q = 1: DFedSAM;   Q > 1: DFedSAM-MGS, multiple gossip steps
    the paper's order is "ATC" (adapt, then combine); "CTA" starts the local steps from sum_l [W^Q]_il x_l, and x_i <- y

rho = 0 is DFedAvg; W = 1 1^T / n with Q = 1 is FedSAM with everybody taking part. Weight decay is a part of f_i here,
so it is in g as well, unless local.weight_decay_mode is "step", as in FedSAM. Each node sends Q vectors to each
neighbour a round; two gradients a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from algorithms.parts import sam_gradient
from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import at_least_one, non_negative, one_of, positive


class DFedSAMState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model


@dataclass(frozen=True)
class DFedSAM:
    """Local sharpness-aware steps, then gossip with the neighbours. Several gossip steps make it DFedSAM-MGS.

    Args:
        lr: local step size eta.
        rho: radius of the ascent step.
        gossip_steps: exchanges Q with the neighbours a round.
        order: "ATC" trains, then averages; "CTA" averages, then trains.
    """

    lr: float = 0.1
    rho: float = 0.01
    gossip_steps: int = 1
    order: Literal["ATC", "CTA"] = "ATC"
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr")
        non_negative(self, "rho")
        at_least_one(self, "gossip_steps")
        one_of(self, "order", ("ATC", "CTA"))

    def init(self, x: Vector, clients: Clients) -> DFedSAMState:
        return DFedSAMState(clients.keep(x))

    def round(self, s: DFedSAMState, clients: Clients) -> DFedSAMState:
        if self.order == "CTA":
            mixed = clients.mix(clients.each(self.share, None, s.x), self.gossip_steps)
            return DFedSAMState(s.x | clients.apply(self.train, mixed))
        return DFedSAMState(s.x | clients.mix(clients.each(self.client, None, s.x), self.gossip_steps))

    def share(self, local: Local, _: None, x: Vector) -> Vector:
        return x

    def client(self, local: Local, _: None, x: Vector) -> Vector:
        return self.train(local, x)

    def train(self, local: Local, x: Vector) -> Vector:
        def step(y: Vector, batch: Batch, eta: Vector) -> Vector:
            return local.descend(y, sam_gradient(local, y, batch, self.rho), eta)

        return local.fold(step, x, self.lr * local.decay)
