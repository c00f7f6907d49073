"""K-GT: Liu, Lin, Koloskova, Stich, 2023 (arXiv 2301.01313): gradient tracking with local steps.

    node i:  y <- x_i;   K times:  y <- y - eta (grad f_i(y; B) + c_i)
             z_i <- (x_i - y) / (K eta)
             x_i <- sum_l w_il (x_l - eta_s K eta z_l);   c_i <- c_i - z_i + sum_l w_il z_l

The corrections c_i sum to 0 and converge to the difference between the network's gradient and node i's, so that local
steps reach the exact minimiser with a constant step. The paper starts from that difference at the first model, which
takes a mean over all nodes; here they start at 0. With K = 1 and eta_s = 1 this is gradient tracking, and on the
complete graph SCAFFOLD (option II) with everybody. Each node sends 2 vectors to each neighbour, in one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import plain_steps
from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import positive


class KGTState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model
    c: Kept[Vector]  # [n, d] its correction


class Moved(NamedTuple):
    x: Vector  # [d] model after the local steps
    z: Vector  # [d] their mean direction


@dataclass(frozen=True)
class KGT:
    """Local steps along tracked gradients, then gossip: exact on heterogeneous data.

    Args:
        lr: local step size eta.
        server_lr: communication step size eta_s, the share of a node's local steps that its neighbours receive.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    server = False
    no_rule = "it needs a mixing that preserves sums"

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")

    def init(self, x: Vector, clients: Clients) -> KGTState:
        return KGTState(clients.keep(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: KGTState, clients: Clients) -> KGTState:
        sent, rest = clients.each(self.client, None, s.x, s.c)
        x, c = clients.apply(self.correct, rest, clients.mix(sent))
        return KGTState(s.x | x, s.c | c)

    def client(self, local: Local, _: None, x: Vector, c: Vector) -> tuple[Moved, Vector]:
        def step(y: Vector, batch: Batch, c: Vector, eta: Vector) -> Vector:
            return local.descend(y, local.grad(y, batch) + c, eta)

        plain_steps(local, "K-GT divides by K eta, as for SGD; use DFedAvg with this optimiser, or SGD")
        eta = self.lr * local.decay                        # 0 at the end of some schedules, where nothing moves
        dx = x - local.fold(step, x, c, eta)
        z = torch.where(eta > 0, dx / (local.steps * eta), 0)
        return Moved(x - self.server_lr * dx, z), c - z

    def correct(self, local: Local, rest: Vector, mixed: Moved) -> tuple[Vector, Vector]:
        return mixed.x, rest + mixed.z
