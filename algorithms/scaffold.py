"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, ICML 2020 (arXiv 1910.06378), Algorithm 1.

    client i:  y <- x;   K times:  y <- y - eta (grad f_i(y; B) - c_i + c)
               option I:  c_i+ <- grad f_i(x)      option II:  c_i+ <- c_i - c + (x - y) / (K eta)
               send (y - x, c_i+ - c_i)
    server:    x <- x + eta_g mean_S (y_i - x);   c <- c + (|S| / n) mean_S (c_i+ - c_i)

eta and K in option II are those of this round and this client. It infers gradients from steps, so local optimisers
other than SGD need option I. With local.weight_decay_mode "step" and local.clip_mode "direction", as in published code,
decay and clipping act on the corrected gradient, and c_i+ of option II holds both. FL-Simulator's code takes K from
client 0, which is wrong where clients' numbers of samples differ.
Down 2 vectors, up 2 vectors, as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from algorithms.parts import plain_steps
from fedsim import Batch, Clients, Kept, Local, Vector
from fedsim.checks import one_of, positive


class ScaffoldState(NamedTuple):
    x: Vector  # [d] server model
    c: Vector  # [d] server control variate
    c_i: Kept[Vector]  # [n, d] client control variates


@dataclass(frozen=True)
class Scaffold:
    """Stochastic controlled averaging: control variates correct client drift.

    Args:
        lr: local step size eta.
        server_lr: server step size eta_g.
        option: how a client renews its control variate: "II" from its own steps, "I" by a pass over its whole shard.
    """

    lr: float = 0.1
    server_lr: float = 1.0
    option: Literal["I", "II"] = "II"
    sums = (1,)  # the server adds up c_i+ - c_i

    def __post_init__(self) -> None:
        positive(self, "lr", "server_lr")
        one_of(self, "option", ("I", "II"))

    def init(self, x: Vector, clients: Clients) -> ScaffoldState:
        return ScaffoldState(x, torch.zeros_like(x), clients.keep(torch.zeros_like(x)))

    def round(self, s: ScaffoldState, clients: Clients) -> ScaffoldState:
        sent, c_i = clients.each(self.client, (s.x, s.c), s.c_i)
        dx, dc = clients.mean(sent)
        return ScaffoldState(s.x + self.server_lr * dx, s.c + clients.fraction * dc, s.c_i | c_i)

    def client(self, local: Local, down: tuple[Vector, Vector], c_i: Vector) -> tuple[tuple[Vector, Vector], Vector]:
        def step(y: Vector, batch: Batch, eta: Vector, correction: Vector) -> Vector:
            return local.descend(y, local.grad(y, batch) + correction, eta)

        if self.option == "II":
            plain_steps(local, "SCAFFOLD's option II divides by K eta, as for SGD; set algorithm.option to I")
        x, c = down
        eta = self.lr * local.decay
        y = local.fold(step, x, eta, c - c_i)
        if self.option == "I":
            new = local.grad(x)
        else:                                              # eta is 0 at the end of some schedules, where nothing moves
            new = torch.where(eta > 0, c_i - c + (x - y) / (local.steps * eta), c_i)
        return (y - x, new - c_i), new
