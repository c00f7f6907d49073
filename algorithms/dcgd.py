"""DCGD, distributed compressed gradient descent: Khirirat, Feyzmahdavian, Johansson, 2018 (arXiv 1806.06573).

    client i:  send C(grad f_i(x))
    server:    x <- x - gamma mean_S C(grad f_i(x))

Without memory it is not exact: an unbiased C leaves a floor that grows with gamma and omega, unless the minimiser is a
stationary point of every f_i; a biased C may diverge however small gamma is (Beznosikov, Horvath, Richtarik, Safaryan,
2020, arXiv 2002.12410, example 1). With the identity this is gradient descent. Down 1 vector, up 1 compressed vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from algorithms.parts import Gradient, gradient_of
from fedsim import Clients, Compressor, Local, Packed, Vector
from fedsim.checks import one_of, positive
from fedsim.compress import TopK
from fedsim.compress.checks import is_compressor


class DCGDState(NamedTuple):
    x: Vector  # [d] server model


@dataclass(frozen=True)
class DCGD:
    """Gradient descent on compressed gradients, without feedback.

    Args:
        lr: step size gamma.
        compressor: what the clients apply to their gradients.
        gradient: of the whole shard ("full"), or of the samples in the round's minibatches ("minibatch").
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    gradient: Gradient = "full"

    def __post_init__(self) -> None:
        positive(self, "lr")
        one_of(self, "gradient", ("full", "minibatch"))
        is_compressor(self)

    def init(self, x: Vector, clients: Clients) -> DCGDState:
        return DCGDState(x)

    def round(self, s: DCGDState, clients: Clients) -> DCGDState:
        g = clients.mean(clients.each(self.client, s.x))
        return DCGDState(s.x - self.lr * clients.decay * g)

    def client(self, local: Local, x: Vector) -> Packed:
        return self.compressor.compress(gradient_of(local, x, self.gradient), local)
