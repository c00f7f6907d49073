"""BEER: Zhao, Li, Li, Richtárik, Chi, NeurIPS 2022 (arXiv 2201.13320), Algorithm 1.

    node i:  x_i <- x_i + gamma (sum_j w_ij h_j - h_i) - eta v_i
             q_i <- C(x_i - h_i) to the neighbours;    h_j <- h_j + q_j        for itself and each neighbour j
             v_i <- v_i + gamma (sum_j w_ij g_j - g_i) + grad f_i(x_i+) - grad f_i(x_i)
             r_i <- C(v_i - g_i) to the neighbours;    g_j <- g_j + r_j    (at first v_i = grad f_i(x_i), h_i = g_i = 0)

Gradient tracking through compressed messages: the trackers' mean is the gradients' mean in every round, so all nodes
reach the exact minimiser with a constant step on any data. Instead of its neighbours' h_j and g_j a node keeps their
weighted sums, which follow from the messages as long as W stays the same and everybody takes part. Gradients are means
over the samples of the round's minibatches. Each node sends 2 compressed vectors to each neighbour, in one message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import consensus_step, mean_gradient
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import positive
from fedsim.compress import TopK
from fedsim.feedback import EF21Uplink


class Own(NamedTuple):
    """Memories of a node besides its model."""

    h: Vector          # its public model
    heard_h: Vector    # sum_j w_ij h_j
    v: Vector          # its tracker of the mean gradient
    g: Vector          # its public tracker
    heard_g: Vector    # sum_j w_ij g_j
    gradient: Vector   # its last gradient


class BEERState(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's own model
    own: Kept[Own]   # [n, d] each


@dataclass(frozen=True)
class BEER:
    """Gradient tracking with compressed messages: exact on heterogeneous data.

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
        positive(self, "lr")
        consensus_step(self)

    def init(self, x: Vector, clients: Clients) -> BEERState:
        kept = clients.keep(x)
        return BEERState(kept, clients.apply(self.begin, kept))

    def round(self, s: BEERState, clients: Clients) -> BEERState:
        sent, x, own = clients.each(self.client, None, s.x, s.own)
        return BEERState(x, clients.apply(self.combine, own, clients.mix(sent, fixed=True)))

    def begin(self, local: Local, x: Vector) -> Own:
        v, zero = mean_gradient(local, x), torch.zeros_like(x)
        return Own(zero, zero, v, zero, zero, v)

    def client(self, local: Local, _: None, x: Vector, own: Own) -> tuple[tuple[Packed, Packed], Vector, Own]:
        h, heard_h, v, g, heard_g, last = own
        link = EF21Uplink(self.compressor)
        x = x + self.gamma * (heard_h - h) - self.lr * local.decay * v
        q, (h, *_more) = link.send(x, (h,), local)
        gradient = mean_gradient(local, x)
        v = v + self.gamma * (heard_g - g) + gradient - last
        r, (g, *_more) = link.send(v, (g,), local)
        return (q, r), x, Own(h, heard_h, v, g, heard_g, gradient)

    def combine(self, local: Local, own: Own, heard: tuple[Vector, Vector]) -> Own:
        q, r = heard
        return own._replace(heard_h=own.heard_h + q, heard_g=own.heard_g + r)
