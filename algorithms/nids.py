"""NIDS: Li, Shi, Yan, IEEE Trans. Signal Process. 2019 (arXiv 1704.07807), Algorithm 1.

    first:  z_i <- x_i - eta grad f_i(x_i);   x_i+ <- prox_{eta r}(z_i)
    then:   z_i <- z_i - x_i + sum_l w~_il (2 x_l - x_l' - eta grad f_l(x_l) + eta' grad f_l(x_l'))
            x_i+ <- prox_{eta r}(z_i)

where x' and eta' are those of the round before and W~ = (1 - theta) I + theta W; the paper's c is theta / eta. The step
size does not depend on the network: below 2 / L for any theta up to 1 / (1 - lambda_min(W)), which 1/2 never exceeds.
Without a regulariser r, theta = 1/2 is Exact Diffusion after a first step without exchange. W must be symmetric, and
everybody takes part in every round. Gradients are means over the samples of the round's minibatches. Each node sends 1
vector to each neighbour; none in the first round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import everybody, mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive, share


class NIDSState(NamedTuple):
    x: Kept[Vector]    # [n, d] every node's own model
    z: Kept[Vector]    # [n, d] the model before the prox
    psi: Kept[Vector]  # [n, d] x' - eta' grad f(x') of the round before


@dataclass(frozen=True)
class NIDS:
    """Network-independent step size: gradient descent with corrected averaging, and an optional regulariser.

    Args:
        lr: step size eta.
        theta: weight of W in W~, in (0, 1].
        prox: proximal operator of a regulariser r that every node has, ``prox(x, eta)``, such as
            algorithms.L1 (soft thresholding).
    """

    lr: float = 0.1
    theta: float = 0.5
    prox: Callable[[Vector, Vector], Vector] | None = None
    server = False
    no_rule = "its correction is that of a linear mixing"

    def __post_init__(self) -> None:
        positive(self, "lr")
        share(self, "theta")

    def init(self, x: Vector, clients: Clients) -> NIDSState:
        kept = clients.keep(x)
        return NIDSState(kept, kept, kept)

    def round(self, s: NIDSState, clients: Clients) -> NIDSState:
        everybody(clients, "NIDS")
        if clients.round == 1:
            return NIDSState(*clients.apply(self.begin, s.x))
        sent, phi, psi = clients.each(self.correct, None, s.x, s.psi)
        x, z = clients.apply(self.combine, s.x, s.z, phi, clients.mix(sent, symmetric=True))
        return NIDSState(x, z, psi)

    def begin(self, local: Local, x: Vector) -> tuple[Vector, Vector, Vector]:
        z = x - self.lr * local.decay * mean_gradient(local, x)
        return self.near(local, z), z, z

    def correct(self, local: Local, _: None, x: Vector, psi: Vector) -> tuple[Vector, Vector, Vector]:
        new = x - self.lr * local.decay * mean_gradient(local, x)
        phi = new + x - psi
        return phi, phi, new

    def combine(self, local: Local, x: Vector, z: Vector, phi: Vector, mixed: Vector) -> tuple[Vector, Vector]:
        z = z - x + phi + self.theta * (mixed - phi)
        return self.near(local, z), z

    def near(self, local: Local, z: Vector) -> Vector:
        """``prox_{eta r}(z)``."""
        return z if self.prox is None else self.prox(z, self.lr * local.decay)
