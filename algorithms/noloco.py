"""NoLoCo: Kolehmainen, Blagoev, Donaghy, Ersoy, Nies 2025 (arXiv 2506.10911): DiLoCo without an all-reduce.

    node i:  theta_i <- phi_i;   H inner steps on theta_i;   send theta_i - phi_i and phi_i
    g_i <- sum_j w_ij (theta_j - phi_j);   phibar_i <- sum_j w_ij phi_j
    delta_i <- mu delta_i + eta_o g_i + eta_o (phibar_i - phi_i);   phi_i <- phi_i + delta_i

In the paper the W of a round pairs the nodes at random: ``--topology RandomMatching``; any other topology works too. A
node without a partner takes a Lookahead step. Each node sends 2 vectors to each neighbour a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import in_range, positive


class Moved(NamedTuple):
    g: Vector  # [d] theta_i - phi_i
    phi: Vector  # [d] phi_i


class NoLoCoState(NamedTuple):
    x: Kept[Vector]  # [n, d] slow weights phi_i
    delta: Kept[Vector]  # [n, d] outer momentum


@dataclass(frozen=True)
class NoLoCo:
    """Local steps with an outer optimiser at every node; averages of pairs instead of all.

    Args:
        lr: inner step size eta.
        outer_lr: outer step size eta_o.
        outer_momentum: mu.
    """

    lr: float = 0.1
    outer_lr: float = 0.7
    outer_momentum: float = 0.3
    server = False

    def __post_init__(self) -> None:
        positive(self, "lr", "outer_lr")
        in_range(self, "outer_momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> NoLoCoState:
        return NoLoCoState(clients.keep(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: NoLoCoState, clients: Clients) -> NoLoCoState:
        mixed = clients.mix(clients.each(self.client, None, s.x))
        x, delta = clients.apply(self.outer, s.x, s.delta, mixed)
        return NoLoCoState(s.x | x, s.delta | delta)

    def client(self, local: Local, _: None, phi: Vector) -> Moved:
        return Moved(local_sgd(local, phi, self.lr) - phi, phi)

    def outer(self, local: Local, phi: Vector, delta: Vector, mixed: Moved) -> tuple[Vector, Vector]:
        g, average = mixed
        delta = self.outer_momentum * delta + self.outer_lr * (g + average - phi)
        return phi + delta, delta
