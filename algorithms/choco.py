"""CHOCO-SGD and CHOCO-Gossip: Koloskova, Stich, Jaggi, ICML 2019 (arXiv 1902.00340), Algorithms 2 and 1.

    node i:  x_i <- x_i - eta grad f_i(x_i; B)                                (eta = 0: CHOCO-Gossip, averaging alone)
             q_i <- C(x_i - xhat_i) to the neighbours;    xhat_j <- xhat_j + q_j    for itself and each neighbour j
             x_i <- x_i + gamma sum_j w_ij (xhat_j - xhat_i)                  (xhat_i = 0 at first)

Instead of its neighbours' copies xhat_j a node keeps s_i = sum_j w_ij xhat_j, which follows from the messages as long
as W stays the same and everybody takes part. The mean of the x_i moves by the gradients alone. CHOCO-Gossip converges
linearly where mixing the compressed x_i themselves stalls; CHOCO-SGD, like D-PSGD, to a neighbourhood on heterogeneous
data. The gradient is the mean over the samples of the round's minibatches. Each node sends 1 compressed vector to each
neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import consensus_step, mean_gradient
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import non_negative
from fedsim.compress import TopK
from fedsim.feedback import Choco, EF21Uplink


class ChocoState(NamedTuple):
    x: Kept[Vector]     # [n, d] every node's own model
    xhat: Kept[Vector]  # [n, d] its public copy, which the neighbours hold too
    s: Kept[Vector]     # [n, d] sum_j w_ij xhat_j


@dataclass(frozen=True)
class ChocoSGD:
    """A stochastic gradient, then gossip of compressed differences to public copies. With ``lr`` 0 it is CHOCO-Gossip.

    Args:
        lr: step size eta.
        gamma: step size gamma of the consensus, in (0, 1].
        compressor: what nodes send through; contractive.
    """

    lr: float = 0.1
    gamma: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    server = False
    no_rule = "its nodes add up differences of their neighbours' memories"

    def __post_init__(self) -> None:
        non_negative(self, "lr")
        consensus_step(self)

    def init(self, x: Vector, clients: Clients) -> ChocoState:
        zero = clients.keep(torch.zeros_like(x))
        return ChocoState(clients.keep(x), zero, zero)

    def round(self, s: ChocoState, clients: Clients) -> ChocoState:
        sent, x, xhat = clients.each(self.client, None, s.x, s.xhat)
        heard = clients.mix(sent, fixed=True)
        x, total = clients.apply(self.combine, x, xhat, s.s, heard)
        return ChocoState(x, xhat, total)

    def client(self, local: Local, _: None, x: Vector, xhat: Vector) -> tuple[Packed, Vector, Vector]:
        if self.lr:
            x = x - self.lr * local.decay * mean_gradient(local, x)
        q, (xhat, *_more) = EF21Uplink(self.compressor).send(x, (xhat,), local)      # xhat_i is EF21's h_i
        return q, x, xhat

    def combine(self, local: Local, x: Vector, xhat: Vector, s: Vector, heard: Vector) -> tuple[Vector, Vector]:
        x, (_, s) = Choco(self.compressor, self.gamma).combine(x, (xhat, s), heard)
        return x, s
