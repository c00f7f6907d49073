"""D-PSGD: Lian, Zhang, Zhang, Hsieh, Zhang, Liu, NeurIPS 2017 (arXiv 1705.09056), Algorithm 1.

    node i:  g_i <- grad f_i(x_i; B), the mean over the samples of the round's minibatches
             x_i <- sum_l w_il x_l - eta g_i

The gradient is taken where the node was, not where its neighbours pull it, so the exchange can run while it is
computed. Each node sends 1 vector to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class DPSGDState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model


@dataclass(frozen=True)
class DPSGD:
    """One stochastic gradient and one exchange a round.

    Args:
        lr: step size eta.
    """

    lr: float = 0.1
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> DPSGDState:
        return DPSGDState(clients.keep(x))

    def round(self, s: DPSGDState, clients: Clients) -> DPSGDState:
        sent, g = clients.each(self.gradient, None, s.x)
        return DPSGDState(s.x | clients.apply(self.descend, clients.mix(sent), g))

    def gradient(self, local: Local, _: None, x: Vector) -> tuple[Vector, Vector]:
        return x, mean_gradient(local, x)

    def descend(self, local: Local, mixed: Vector, g: Vector) -> Vector:
        return mixed - self.lr * local.decay * g
