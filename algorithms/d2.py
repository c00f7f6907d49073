"""D^2: Tang, Lian, Yan, Zhang, Liu, ICML 2018 (arXiv 1803.07068), Algorithm 1: decentralized data.

    first:  x_i+ <- sum_l w_il (x_l - eta grad f_l(x_l))
    then:   x_i+ <- sum_l w_il (2 x_l - x_l' - eta grad f_l(x_l) + eta' grad f_l(x_l'))

where x' and eta' are those of the round before. W must be symmetric with all eigenvalues above -1/3, or the method does
not converge: Metropolis weights on a ring of an even number of nodes have -1/3 itself. (I + W) / 2, ``lazy`` of a
topology, always satisfies this, and the method is then Exact Diffusion on W. The analysis is of a constant W: if it
changes from round to round, iterates can grow without bound. Everybody takes part in every round. Gradients are means
over the samples of the round's minibatches. Each node sends 1 vector to each neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from algorithms.parts import everybody, mean_gradient
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import positive


class D2State(NamedTuple):
    x: Kept[Vector]    # [n, d] every node's own model
    psi: Kept[Vector]  # [n, d] x' - eta' grad f(x') of the round before; x at first


@dataclass(frozen=True)
class D2:
    """Variance reduction among nodes: D-PSGD without the noise of their differing data.

    Args:
        lr: step size eta.
    """

    lr: float = 0.1
    server = False
    no_rule = "its correction is that of a linear mixing"

    def __post_init__(self) -> None:
        positive(self, "lr")

    def init(self, x: Vector, clients: Clients) -> D2State:
        kept = clients.keep(x)
        return D2State(kept, kept)

    def round(self, s: D2State, clients: Clients) -> D2State:
        everybody(clients, "D2")
        sent, psi = clients.each(self.client, None, s.x, s.psi)
        return D2State(clients.mix(sent, symmetric=True, above=-1 / 3, fixed=True), psi)

    def client(self, local: Local, _: None, x: Vector, psi: Vector) -> tuple[Vector, Vector]:
        new = x - self.lr * local.decay * mean_gradient(local, x)
        return new + x - psi, new
