"""EF21: Richtarik, Sokolov, Fatkhullin, NeurIPS 2021 (arXiv 2106.05203), Algorithm 1; and its small variants:
Fatkhullin, Sokolov, Gorbunov, Li, Richtarik, "EF21 with Bells & Whistles", 2021 (arXiv 2110.03294).

    before round 1:  g_i <- grad f_i(x);   g, v <- sum_i p_i g_i
    server:    x <- prox_{gamma r}(x - gamma v)
    client i:  c_i <- C(grad f_i(x) - g_i);   g_i <- g_i + c_i;   send c_i
    server:    g <- g + sum_S p_i c_i;   v <- eta v + g

- EF21: eta = 0, r = 0, everybody. With the identity this is gradient descent.
- EF21-PP: only the cohort S takes part; the sum is divided by n, not by |S|, so that g stays the mean of all g_i.
- EF21-HB: eta > 0.   EF21-Prox: r given.   EF21-SGD: minibatch gradients; their noise is not averaged away.

``start`` says how the g_i begin: dense (the authors' code), compressed (their paper), or zero, which is the compressed
start one round later (where r = 0). Down 1 vector, up 1 compressed vector; in round 0 the same, but up 1 vector for the
dense start, and nothing either way for zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from algorithms.parts import Gradient, Start, gradient_of
from fedsim import Clients, Compressor, Kept, Local, Packed, Vector
from fedsim.checks import in_range, one_of, positive
from fedsim.compress import TopK
from fedsim.compress.checks import contractive
from fedsim.feedback import EF21Uplink


class EF21State(NamedTuple):
    x: Vector  # [d] server model
    g: Vector  # [d] sum_i p_i g_i
    v: Vector  # [d] the step's direction: g, with momentum
    g_i: Kept[Vector]  # [n, d] each client's estimate of its gradient, which the server could compute as well


@dataclass(frozen=True)
class L1:
    """The regulariser ``r(x) = lam ||x||_1``, for EF21-Prox.

    Args:
        lam: its weight.
    """

    lam: float = 1e-3

    def __post_init__(self) -> None:
        positive(self, "lam")

    def __call__(self, x: Vector, gamma: Vector) -> Vector:
        """The minimiser of ``gamma r(y) + ||y - x||^2 / 2``, both ``[d]``."""
        return torch.sign(x) * (x.abs() - gamma * self.lam).clamp(min=0)


@dataclass(frozen=True)
class EF21:
    """Compressed gradient descent that sends compressed changes of the gradients: exact on any clients.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to the change of their gradients; contractive.
        start: the clients' first estimates: their gradients as they are, compressed, or zero.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch", EF21-SGD).
        momentum: heavy-ball coefficient eta of the server (EF21-HB).
        prox: proximal operator of a regulariser that the server knows, ``prox(x, gamma)``, such as
            algorithms.L1 (EF21-Prox).
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    start: Start = "dense"
    gradient: Gradient = "full"
    momentum: float = 0.0
    prox: Callable[[Vector, Vector], Vector] | None = None
    sums = (0,)  # the server adds up c_i

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "start", ("dense", "compressed", "zero"))
        one_of(self, "gradient", ("full", "minibatch"))
        in_range(self, "momentum", 0, 1)
        contractive(self)

    def init(self, x: Vector, clients: Clients) -> EF21State:
        g, g_i = torch.zeros_like(x), clients.keep(torch.zeros_like(x))
        if self.start != "zero":
            first: Callable[..., tuple[Vector | Packed, Vector]] = self.begin if self.start == "dense" else self.client
            sent, g_i = clients.each(first, x, g_i)
            g = clients.mean(sent)
        return EF21State(x, g, g, g_i)

    def round(self, s: EF21State, clients: Clients) -> EF21State:
        gamma = self.lr * clients.decay
        x = s.x - gamma * s.v
        if self.prox is not None:
            x = self.prox(x, gamma)
        sent, g_i = clients.each(self.client, x, s.g_i)
        g = s.g + clients.fraction * clients.mean(sent)
        return EF21State(x, g, self.momentum * s.v + g, s.g_i | g_i)

    def begin(self, local: Local, x: Vector, _: Vector) -> tuple[Vector, Vector]:
        g_i = gradient_of(local, x, self.gradient)
        return g_i, g_i

    def client(self, local: Local, x: Vector, g_i: Vector) -> tuple[Packed, Vector]:
        v = gradient_of(local, x, self.gradient)
        c_i, (g_i, *_) = EF21Uplink(self.compressor).send(v, (g_i,), local)
        return c_i, g_i
