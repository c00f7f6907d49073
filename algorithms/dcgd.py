"""DCGD, distributed compressed gradient descent: Khirirat, Feyzmahdavian, Johansson, 2018 (arXiv 1806.06573).

    client i:  send C(grad f_i(x))
    server:    x <- x - gamma mean_S C(grad f_i(x))

No memory, so no exactness: an unbiased C leaves a floor that grows with gamma and omega, unless every client is at rest
at the minimiser; a biased C may diverge however small gamma is (Beznosikov, Horvath, Richtarik, Safaryan, 2020, arXiv
2002.12410, example 1). With the identity this is gradient descent. Down 1 vector, up 1 compressed vector.

Step size in theory, for an unbiased C and convex f: gamma = 1 / (L + 2 omega max_i L_i / n).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from algorithms.dpsgd import mean_gradient
from algorithms.theory import Task, Theory, constants_of, omega_of, refuse_minibatches
from fedsim import Clients, Compressor, Local, Packed, Vector
from fedsim.checks import is_compressor, one_of, positive
from fedsim.compress import TopK

Gradient = Literal["full", "minibatch"]
"""Of the whole shard, or of the samples in the round's minibatches: over an epoch, the same."""


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

    def theory(self, task: Task) -> Theory:
        """Step size for convex f, with everybody in every round; that of gradient descent, 1 / L, with the identity."""
        refuse_minibatches(self)
        c = constants_of(task)
        omega = omega_of(self.compressor, c.d)
        gamma = 1 / (c.L + 2 * omega * c.L_max / c.n)
        return Theory({"convex": gamma}, {"omega": omega, "L": c.L, "L_max": c.L_max})


def gradient_of(local: Local, x: Vector, kind: Gradient) -> Vector:
    """A client's gradient at ``x``: see ``DCGD.gradient``."""
    return local.grad(x) if kind == "full" else mean_gradient(local, x)
