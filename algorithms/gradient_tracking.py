"""Gradient tracking, DSGT: Pu, Nedić, Math. Program. 2021 (arXiv 1805.11454).

    node i:  x_i <- sum_l w_il (x_l - eta y_l)
             y_i <- sum_l w_il y_l + g_i+ - g_i,    g_i+ <- grad f_i(x_i; B) at the new x_i,    y_i = g_i at first

The tracker's mean is the gradients' mean in every round, so with exact gradients all nodes reach the exact minimiser
with a constant step. Gradients are means over the samples of the round's minibatches. Each node sends 2 vectors to each
neighbour, in one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class GradientTrackingState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model
    y: Kept[Vector]  # [n, d] its tracker of the mean gradient
    g: Kept[Vector]  # [n, d] its last gradient


class Tracked(NamedTuple):
    x: Vector  # [d] model
    y: Vector  # [d] tracker


@dataclass(frozen=True)
class GradientTracking:
    """Descends along a tracker of the network's mean gradient; exact on heterogeneous data.

    Args:
        lr: step size eta.
    """

    lr: float = 0.1
    server = False
    no_rule = "it needs a mixing that preserves sums"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> GradientTrackingState:
        kept = clients.keep(x)
        g = clients.apply(self.gradient, kept)
        return GradientTrackingState(kept, g, g)

    def round(self, s: GradientTrackingState, clients: Clients) -> GradientTrackingState:
        mixed = clients.mix(clients.each(self.descend, None, s.x, s.y))
        x, y, g = clients.apply(self.track, mixed, s.g)
        return GradientTrackingState(s.x | x, s.y | y, s.g | g)

    def gradient(self, local: Local, x: Vector) -> Vector:
        return mean_gradient(local, x)

    def descend(self, local: Local, _: None, x: Vector, y: Vector) -> Tracked:
        return Tracked(x - self.lr * local.decay * y, y)

    def track(self, local: Local, mixed: Tracked, g_old: Vector) -> tuple[Vector, Vector, Vector]:
        x, y = mixed
        g = mean_gradient(local, x)
        return x, y + g - g_old, g
