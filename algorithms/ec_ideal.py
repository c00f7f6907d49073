"""EC-Ideal: Gao, Islamov, Stich, "EControl: Fast Distributed Optimization with Compression and Error Control", ICLR
2024 (arXiv 2311.05645).

    before round 1:  h_i <- grad f_i(x*), with the minimiser x* known;   h <- sum_i p_i h_i;   e_i <- 0
    client i:  D_i <- C(e_i + grad f_i(x) - h_i);   e_i <- e_i + grad f_i(x) - h_i - D_i;   send D_i
    server:    x <- x - gamma (h + mean_S D_i)

The message is EControl's with eta = 1, but h_i stays. With h_i = 0 this is EF14. Down 1 vector, up 1 compressed vector;
in round 0, 1 vector both ways.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import Gradient, gradient_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import one_of, positive
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.errors import ConfigError
from fedsim.feedback import EControlUplink

Memory = tuple[Vector, Vector]
"""e_i and h_i."""


class ECIdealState(NamedTuple):
    x: Vector  # [d] server model
    h: Vector  # [d] sum_i p_i h_i
    mine: Kept[Memory]  # [n, d] each


@dataclass(frozen=True)
class ECIdeal:
    """Error feedback around the gradients at the minimiser: what EControl would be if it knew them.

    Args:
        lr: step size gamma.
        compressor: what the clients send through; contractive.
        minimizer: x*; h_i = 0 when empty.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    minimizer: tuple[float, ...] = ()
    gradient: Gradient = "full"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> ECIdealState:
        zero = torch.zeros_like(x)
        if not self.minimizer:
            return ECIdealState(x, zero, clients.keep((zero, zero)))
        if len(self.minimizer) != len(x):
            raise ConfigError(f"ECIdeal.minimizer has {len(self.minimizer)} coordinates; expected {len(x)}")
        sent, mine = clients.each(self.begin, x.new_tensor(self.minimizer), clients.keep((zero, zero)))
        return ECIdealState(x, clients.mean(sent), mine)

    def round(self, s: ECIdealState, clients: Clients) -> ECIdealState:
        sent, mine = clients.each(self.client, s.x, s.mine)
        return ECIdealState(s.x - self.lr * clients.decay * (s.h + clients.mean(sent)), s.h, s.mine | mine)

    def begin(self, local: Local, x: Vector, mine: Memory) -> tuple[Vector, Memory]:
        h_i = local.grad(x)
        return h_i, (mine[0], h_i)

    def client(self, local: Local, x: Vector, mine: Memory) -> tuple[Packed, Memory]:
        g = gradient_of(local, x, self.gradient)
        sent, (e_i, *_) = EControlUplink(self.compressor, eta=1.0).send(g, mine, local)
        return sent, (e_i, mine[1])                        # h_i stays
