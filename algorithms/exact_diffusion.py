"""Exact Diffusion: Yuan, Ying, Zhao, Sayed, IEEE Trans. Signal Process. 2019 (arXiv 1702.05122), with W~ = (I + W) / 2.

    node i:  psi+ <- x_i - eta grad f_i(x_i)          adapt
             phi  <- psi+ + x_i - psi                 correct (psi = x_i at first)
             x_i  <- sum_l w~_il phi_l                combine

Diffusion with the bias taken out: exact on heterogeneous data with a constant step. W must be symmetric, and everybody
takes part in every round. Each node sends 1 vector to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import everybody, mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class ExactDiffusionState(NamedTuple):
    x: Kept[Vector]    # [n, d] every node's own model
    psi: Kept[Vector]  # [n, d] its adapted model of the round before


@dataclass(frozen=True)
class ExactDiffusion:
    """Adapt, correct, combine.

    Args:
        lr: step size eta.
    """

    lr: float = 0.1
    server = False
    no_rule = "its correction is that of a linear mixing"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> ExactDiffusionState:
        return ExactDiffusionState(clients.keep(x), clients.keep(x))

    def round(self, s: ExactDiffusionState, clients: Clients) -> ExactDiffusionState:
        everybody(clients, "ExactDiffusion")
        sent, phi, psi = clients.each(self.correct, None, s.x, s.psi)
        return ExactDiffusionState(clients.apply(self.combine, phi, clients.mix(sent, symmetric=True)), psi)

    def correct(self, local: Local, _: None, x: Vector, psi: Vector) -> tuple[Vector, Vector, Vector]:
        adapted = x - self.lr * local.decay * mean_gradient(local, x)
        phi = adapted + x - psi
        return phi, phi, adapted

    def combine(self, local: Local, phi: Vector, mixed: Vector) -> Vector:
        return (phi + mixed) / 2
