"""D-PSGD: Lian, Zhang, Zhang, Hsieh, Zhang, Liu, NeurIPS 2017 (arXiv 1705.09056), Algorithm 1.

    node i:  g_i <- grad f_i(x_i; B), the mean over the samples of the round's minibatches
             m_i <- beta m_i + (1 - beta) g_i        (m_i starts at 0)
             x_i <- sum_l w_il x_l - eta m_i

The gradient is taken at the node's own model and not at the average, so the exchange can overlap its computation. The
paper has beta = 0; beta > 0 is worker momentum, which keeps models closer to each other under attack (He, Karimireddy,
Jaggi, 2022, arXiv 2202.01545). Each node sends 1 vector to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import in_range, positive


class DPSGDState(NamedTuple):
    x: Kept[Vector]                   # [n, d] every node's own model
    m: Kept[Vector] | tuple[()] = ()  # [n, d] its momentum, if there is one


@dataclass(frozen=True)
class DPSGD:
    """One stochastic gradient and one exchange a round.

    Args:
        lr: step size eta.
        momentum: worker momentum beta; kept from round to round.
    """

    lr: float = 0.1
    momentum: float = 0.0
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr")
        in_range(self, "momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> DPSGDState:
        return DPSGDState(clients.keep(x), clients.keep(torch.zeros_like(x)) if self.momentum else ())

    def round(self, s: DPSGDState, clients: Clients) -> DPSGDState:
        sent, g = clients.each(self.gradient, None, s.x)
        m: Kept[Vector] | tuple[()] = ()
        if isinstance(s.m, Kept):
            g = clients.apply(self.follow, s.m, g)
            m = s.m | g
        return DPSGDState(s.x | clients.apply(self.descend, clients.mix(sent), g), m)

    def gradient(self, local: Local, _: None, x: Vector) -> tuple[Vector, Vector]:
        return x, mean_gradient(local, x)

    def follow(self, local: Local, m: Vector, g: Vector) -> Vector:
        return self.momentum * m + (1 - self.momentum) * g

    def descend(self, local: Local, mixed: Vector, g: Vector) -> Vector:
        return mixed - self.lr * local.decay * g
