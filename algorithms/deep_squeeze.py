"""DeepSqueeze: Tang, Lian, Qiu, Yuan, Zhang, Zhang, Liu, 2019 (arXiv 1907.07346), Algorithm 1.

    node i:  x_i <- x_i - eta grad f_i(x_i; B)
             q_i <- C(x_i + e_i) to the neighbours;    e_i <- x_i + e_i - q_i           (e_i = 0 at first)
             x_i <- x_i + gamma (sum_j w_ij q_j - q_i)

Error feedback in gossip: what was lost is added to the next message. It compresses models and not differences, so gamma
must be small; in return no node keeps copies of its neighbours, so the topology may change and nodes may be away. Like
D-PSGD it converges to a neighbourhood on heterogeneous data. The gradient is the mean over the samples of the round's
minibatches. Each node sends 1 compressed vector to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import consensus_step, mean_gradient
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import non_negative
from fedsim.compress import TopK
from fedsim.feedback import EF14Uplink


class DeepSqueezeState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model
    e: Kept[Vector]  # [n, d] what its messages have lost


@dataclass(frozen=True)
class DeepSqueeze:
    """A stochastic gradient, then gossip of compressed models with error feedback.

    Args:
        lr: step size eta.
        gamma: step size gamma of the consensus, in (0, 1].
        compressor: what nodes send through; contractive.
    """

    lr: float = 0.1
    gamma: float = 0.02
    compressor: Compressor = field(default_factory=TopK)
    server = False
    no_rule = "its nodes add up differences of their neighbours' memories"

    def __post_init__(self) -> None:
        non_negative(self, "lr")
        consensus_step(self)

    def init(self, x: Vector, clients: Clients) -> DeepSqueezeState:
        return DeepSqueezeState(clients.keep(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: DeepSqueezeState, clients: Clients) -> DeepSqueezeState:
        sent, x, e, own = clients.each(self.client, None, s.x, s.e)
        return DeepSqueezeState(s.x | clients.apply(self.combine, x, own, clients.mix(sent)), s.e | e)

    def client(self, local: Local, _: None, x: Vector, e: Vector) -> tuple[Packed, Vector, Vector, Vector]:
        if self.lr:
            x = x - self.lr * local.decay * mean_gradient(local, x)
        q, (e, *_more) = EF14Uplink(self.compressor).send(x, (e,), local)
        return q, x, e, q.unpack()

    def combine(self, local: Local, x: Vector, own: Vector, heard: Vector) -> Vector:
        return x + self.gamma * (heard - own)
