"""EF21-SGDM and EF21-SGD2M: Fatkhullin, Tyurin, Richtarik, "Momentum Provably Improves Error Feedback!", NeurIPS 2023
(arXiv 2305.15155).

    before round 1:  v_i, u_i, g_i <- large-batch grad f_i(x);   g <- sum_i p_i g_i
    server:    x <- x - gamma g
    client i:  v_i <- (1 - eta) v_i + eta grad f_i(x; B);   SGDM: u_i <- v_i;   SGD2M: u_i <- (1 - eta) u_i + eta v_i
               c_i <- C(u_i - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S p_i c_i

The momentum averages a client's noise before it is compressed, which EF21-SGD (eta = 1) does not. B is the round's
minibatches. Down 1 vector, up 1 compressed vector; in round 0, 1 vector both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import mean_gradient
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import at_least_one, positive, share
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.errors import ConfigError
from fedsim.feedback import EF21Uplink

Memory = tuple[Vector, ...]
"""The momenta v_i and perhaps u_i, then g_i."""


class EF21SGDMState(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] sum_i p_i g_i
    mine: Kept[Memory]  # [n, d] each


@dataclass(frozen=True)
class EF21SGDM:
    """EF21 on averaged stochastic gradients.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the change of their momentum; contractive.
        eta: weight of a new gradient, above 0; 1 is EF21-SGD.
        momenta: 1 for SGDM, 2 for double momentum (SGD2M).
        first_batch: samples in the gradient of round 0; 0 for the client's whole shard.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    eta: float = 0.1
    momenta: int = 1
    first_batch: int = 0
    sums = (0,)  # the server adds up c_i

    def __post_init__(self) -> None:
        positive(self, "lr")
        share(self, "eta")
        at_least_one(self, "momenta")
        contractive(self)
        if self.first_batch < 0:
            raise ConfigError(f"EF21SGDM.first_batch is {self.first_batch}; expected 1 or more, or 0 for the shard")

    def init(self, x: Vector, clients: Clients) -> EF21SGDMState:
        sent, mine = clients.each(self.begin, x, clients.keep((torch.zeros_like(x),) * (self.momenta + 1)))
        return EF21SGDMState(x, clients.mean(sent), mine)

    def round(self, s: EF21SGDMState, clients: Clients) -> EF21SGDMState:
        x = s.x - self.lr * clients.decay * s.g
        sent, mine = clients.each(self.client, x, s.mine)
        return EF21SGDMState(x, s.g + clients.fraction * clients.mean(sent), s.mine | mine)

    def begin(self, local: Local, x: Vector, mine: Memory) -> tuple[Vector, Memory]:
        v = local.grad(x, local.sample(self.first_batch)) if self.first_batch else local.grad(x)
        return v, (v,) * len(mine)

    def client(self, local: Local, x: Vector, mine: Memory) -> tuple[Packed, Memory]:
        *old, g_i = mine
        u, momenta = mean_gradient(local, x), list[Vector]()
        for v in old:
            u = (1 - self.eta) * v + self.eta * u
            momenta.append(u)
        c_i, (g_i, *_) = EF21Uplink(self.compressor).send(u, (g_i,), local)
        return c_i, (*momenta, g_i)
