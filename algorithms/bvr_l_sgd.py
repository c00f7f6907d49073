"""BVR-L-SGD: Murata, Suzuki, ICML 2021 (arXiv 2102.03198): bias-variance reduced local SGD.

    phase 1, every client:  every ``period`` rounds:  v_i <- large-batch grad f_i(x)
                            otherwise:                v_i <- v_i + grad f_i(x; B) - grad f_i(x'; B)
                            send v_i;   server:  v <- mean v_i
    phase 2, every client:  y', y <- x;   g <- v;   K times:  g <- g - grad f_i(y'; B) + grad f_i(y; B),
                                                              (y', y) <- (y, y - eta g)
    server:    x <- y of ONE client drawn at random, the only one that sends it;   or their mean

x' is the model of the round before, B in phase 1 all of the round's minibatches. period = 1 has a large batch in every
round. ``pick`` = "one" is the paper's, in which everybody takes part. Under partial participation, as FedAMD's authors
ran it, v is the mean over the cohort and every round needs large batches; it then does not converge to the exact
minimiser. Down 2 vectors; up 1 vector, and 1 more for the client that is picked ("mean": for all); two gradients a
step, except in the first, where they cancel, besides those of phase 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from algorithms.parts import mean_difference, sarah_steps
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import at_least_one, one_of, positive
from fedsim.errors import ConfigError


class BVRLSGDState(NamedTuple):
    x: Vector  # [d] server model
    v: Kept[Vector]  # [n, d] each client's estimate of its gradient
    last: Kept[Vector]  # [n, d] the model at which it was


@dataclass(frozen=True)
class BVRLSGD:
    """Local steps along a variance-reduced estimate of the gradient of all clients.

    The first step, along the server's estimate, needs no minibatch and is taken outside the local loop: settings that
    act in ``local.descend``, such as ``local.optimizer``, are refused.

    Args:
        lr: local step size eta.
        period: rounds from one large batch to the next.
        pick: whose model the server takes: that of "one" client, at random, or the "mean" of all.
    """

    lr: float = 0.1
    period: int = 1
    pick: Literal["one", "mean"] = "one"
    no_rule = "its server takes the model of one client"

    def __post_init__(self) -> None:
        positive(self, "lr")
        at_least_one(self, "period")
        one_of(self, "pick", ("one", "mean"))

    def init(self, x: Vector, clients: Clients) -> BVRLSGDState:
        return BVRLSGDState(x, clients.keep(torch.zeros_like(x)), clients.keep(x))

    def round(self, s: BVRLSGDState, clients: Clients) -> BVRLSGDState:
        estimate = self.change if (clients.round - 1) % self.period else self.large
        sent, v_i, last = clients.each(estimate, s.x, s.v, s.last)
        if self.period > 1 and len(clients) < clients.n:
            raise ConfigError(
                f"BVRLSGD.period is {self.period}, but {len(clients)} of {clients.n} clients take part, and who is away"
                " misses changes of its estimate: set sampling.fraction to 1 without waiting, or period to 1"
            )
        y = clients.apply(self.descend, last, down=clients.mean(sent))
        picked = clients.pick() if self.pick == "one" else clients
        return BVRLSGDState(picked.mean(picked.each(self.send, None, y)), s.v | v_i, s.last | last)

    def large(self, local: Local, x: Vector, _v: Vector, _last: Vector) -> tuple[Vector, Vector, Vector]:
        v = local.grad(x)
        return v, v, x

    def change(self, local: Local, x: Vector, v: Vector, last: Vector) -> tuple[Vector, Vector, Vector]:
        v = v + mean_difference(local, x, last)
        return v, v, x

    def descend(self, local: Local, v: Vector, x: Vector) -> Vector:
        return sarah_steps(local, x, v, self.lr)

    def send(self, local: Local, _: None, y: Vector) -> Vector:
        return y
