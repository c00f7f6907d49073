"""QG-DSGDm: Lin, Karimireddy, Stich, Jaggi, ICML 2021 (arXiv 2102.04761), Algorithm 1: quasi-global momentum.

    node i:  m <- beta m_i + grad f_i(x_i; B)                           -N, Nesterov's:  grad f_i(x_i; B) + beta m
             x_i+ <- sum_l w_il (x_l - eta m_l)
             m_i  <- mu m_i + (1 - mu) (x_i - x_i+) / eta

The momentum m_i follows the node's movement after mixing instead of its own gradients, which estimates the direction of
the whole network without another message. The paper has mu = beta. beta = 0 is D-PSGD with the step before the
exchange: DFedAvg of one step. Gradients are means over the samples of the round's minibatches. Each node sends 1 vector
to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import in_range, positive


class QGDSGDmState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model
    m: Kept[Vector]  # [n, d] its quasi-global momentum


@dataclass(frozen=True)
class QGDSGDm:
    """Momentum that follows the network's movement instead of a node's gradients.

    Args:
        lr: step size eta.
        momentum: weight beta of the momentum in a step.
        mu: decay of the momentum; beta by default.
        nesterov: whether the gradient counts once more after the momentum (QG-DSGDm-N).
    """

    lr: float = 0.1
    momentum: float = 0.9
    mu: float | None = None
    nesterov: bool = False
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr")
        in_range(self, "momentum", 0, 1)
        if self.mu is not None:
            in_range(self, "mu", 0, 1)

    def init(self, x: Vector, clients: Clients) -> QGDSGDmState:
        return QGDSGDmState(clients.keep(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: QGDSGDmState, clients: Clients) -> QGDSGDmState:
        mixed = clients.mix(clients.each(self.client, None, s.x, s.m))
        return QGDSGDmState(s.x | mixed, s.m | clients.apply(self.follow, s.x, mixed, s.m))

    def client(self, local: Local, _: None, x: Vector, m: Vector) -> Vector:
        g = mean_gradient(local, x)
        m = self.momentum * m + g
        return x - self.lr * local.decay * (g + self.momentum * m if self.nesterov else m)

    def follow(self, local: Local, x: Vector, mixed: Vector, m: Vector) -> Vector:
        mu = self.momentum if self.mu is None else self.mu
        eta = self.lr * local.decay                        # 0 at the end of some schedules, where only mixing moves
        return torch.where(eta > 0, mu * m + (1 - mu) * (x - mixed) / eta, m)
