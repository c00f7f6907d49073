"""FedGamma: Dai, Yang, Sun, Shen, Tian, Wang, Zhang, IEEE Trans. Neural Netw. Learn. Syst. 2023.

    client i:  y <- x;   K times:  g <- grad f_i(y; B);   e <- rho g / ||g||
                                   y <- y - eta (grad f_i(y + e; B) - c_i + c)
               c_i+ <- c_i - c + (x - y) / (K eta);   send (y - x, c_i+ - c_i)
    server:    x <- x + eta_g mean_S (y_i - x);   c <- c + (|S| / n) mean_S (c_i+ - c_i)

SCAFFOLD (option II) with sharpness-aware gradients, whose mean over clients the control variates follow: rho = 0 is
SCAFFOLD. eta and K are those of this round and this client; published code (FL-Simulator) takes K from client 0, which
is wrong where clients' numbers of samples differ. Weight decay and clipping at the step are as in SCAFFOLD.
Down 2 vectors, up 2 vectors; two gradients a step, of the same minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.parts import plain_steps, sam_gradient
from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import non_negative, positive


class FedGammaState(NamedTuple):
    x: Vector  # [d] server model
    c: Vector  # [d] server control variate
    c_i: Kept[Vector]  # [n, d] client control variates


@dataclass(frozen=True)
class FedGamma:
    """Sharpness-aware local steps with control variates against client drift.

    Args:
        lr: local step size eta.
        rho: radius of the ascent step.
        server_lr: server step size eta_g.
    """

    lr: float = 0.1
    rho: float = 0.01
    server_lr: float = 1.0
    sums = (1,)  # the server adds up c_i+ - c_i

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        non_negative(self, "rho")

    def init(self, x: Vector, clients: Clients) -> FedGammaState:
        return FedGammaState(x, torch.zeros_like(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: FedGammaState, clients: Clients) -> FedGammaState:
        sent, c_i = clients.each(self.client, (s.x, s.c), s.c_i)
        dx, dc = clients.mean(sent)
        return FedGammaState(s.x + self.server_lr * dx, s.c + clients.fraction * dc, s.c_i | c_i)

    def client(self, local: Local, down: tuple[Vector, Vector], c_i: Vector) -> tuple[tuple[Vector, Vector], Vector]:
        def step(y: Vector, batch: Batch, eta: Vector, correction: Vector) -> Vector:
            return local.descend(y, sam_gradient(local, y, batch, self.rho) + correction, eta)

        plain_steps(local, "FedGamma divides by K eta, as for SGD; use SCAFFOLD's option I with this optimiser, or SGD")
        x, c = down
        eta = self.lr * local.decay                        # 0 at the end of some schedules, where nothing moves
        y = local.fold(step, x, eta, c - c_i)
        new = torch.where(eta > 0, c_i - c + (x - y) / (local.steps * eta), c_i)
        return (y - x, new - c_i), new
