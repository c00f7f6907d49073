"""CO2 over gossip: the outer step of Sun et al., ICLR 2024, with neighbours in place of the all-reduce.

    node i:  y_i <- x_{t,i};   tau times an inner step;   launch the exchange of y_i with the neighbours
    meanwhile that of the round before arrives:  ybar_i <- y_{t-1,i} + gamma (sum_j w_ij y_{t-1,j} - y_{t-1,i})
        D_i <- x_{t-1,i} - ybar_i;   m_i <- clip(beta m_i + D_i / Lambda_i, phi);   x_{t+1,i} <- x_{t,i} - alpha m_i

With W = 1 1^T / n and gamma = 1 it is CO2. Disagreement decays with the same delay, so stability needs
alpha gamma (1 - l) < 1 - beta for the smallest eigenvalue l of W, which may be close to -1: the default gamma = 0.4 is
stable for every W at alpha = 1 and beta <= 0.2. Each node sends 1 vector to each neighbour a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from algorithms.co2 import Gap, check_outer, outer_step
from algorithms.parts import local_sgd
from fedsim import Clients, Kept, Local, Vector
from fedsim.checks import share


class Held(NamedTuple):
    y: Vector  # [d] y_{t-1,i}, which was sent
    before: Vector  # [d] x_{t-1,i}, from which it came
    moved: Vector  # [d] x_{t,i} - x_{t-1,i}
    m: Vector  # [d] outer momentum
    gap: Vector  # [] memory of the staleness gap


class DCO2State(NamedTuple):
    x: Kept[Vector]  # [n, d] every node's x_{t,i}
    held: Kept[Held]
    in_flight: Kept[Vector]  # [n, d] sum_j w_ij y_{t-1,j}, under way


@dataclass(frozen=True)
class DCO2:
    """Local steps with an outer optimiser; the gossip is one round late and hidden behind local work.

    Args:
        lr: inner step size eta.
        outer_lr: outer step size alpha.
        outer_momentum: beta.
        gamma: consensus step size, above 0 and at most 1.
        clip: largest element phi of the momentum; none by default.
        gap: staleness gap Lambda_t, such as ``algorithms.co2.gap_aware``; 1 by default.
    """

    lr: float = 0.1
    outer_lr: float = 1.0
    outer_momentum: float = 0.2
    gamma: float = 0.4
    clip: float | None = None
    gap: Gap | None = None
    server = False

    def __post_init__(self) -> None:
        check_outer(self)
        share(self, "gamma")

    def init(self, x: Vector, clients: Clients) -> DCO2State:
        zero = torch.zeros_like(x)
        return DCO2State(clients.keep(x), clients.keep(Held(x, x, zero, zero, zero[0])), clients.keep(x))

    def round(self, s: DCO2State, clients: Clients) -> DCO2State:
        sent, y = clients.each(self.client, None, s.x)
        new = self.arrived(s, clients, y)
        return new._replace(in_flight=s.in_flight | clients.mix(sent, behind=1.0))

    def finish(self, s: DCO2State, clients: Clients) -> DCO2State:
        """The state after the last exchange has arrived."""
        return self.arrived(s, clients, s.x)._replace(in_flight=s.x)

    def arrived(self, s: DCO2State, clients: Clients, y: Kept[Vector]) -> DCO2State:
        """The state after the outer step of every node."""
        x, held = clients.apply(self.outer, s.x, s.held, s.in_flight, y)
        return s._replace(x=s.x | x, held=s.held | held)

    def client(self, local: Local, _: None, x: Vector) -> tuple[Vector, Vector]:
        y = local_sgd(local, x, self.lr)
        return y, y

    def outer(self, local: Local, x: Vector, held: Held, mixed: Vector, y: Vector) -> tuple[Vector, Held]:
        """The outer step, with what has arrived; ``y`` is on its way next."""
        D = held.before - (held.y + self.gamma * (mixed - held.y))
        moved, m, gap = outer_step(self, D, held.moved, held.m, held.gap)
        return x + moved, Held(y, x, moved, m, gap)
