"""CO2: Sun, Qin, Sun, Li, Li, Shen, Qiao, Zhong, ICLR 2024: communication behind the whole of the next local work.

    worker i:  y_i <- x_t;   tau times an inner step;   launch the all-reduce of y_i, which ends within the next round
    meanwhile that of the round before arrives:
        D <- x_{t-1} - mean_i y_{t-1,i};   m <- clip(beta m + D / Lambda_t, phi);   x_{t+1} <- x_t - alpha m

All workers start round t from the same x_t, so local progress enters one round late. Nothing has arrived in round 1:
D = 0 there; and `finish` uses what is under way after the last round. The message is y_i - x_t, of which all know x_t.
The staleness gap Lambda_t divides the late D. The authors' code has a constant, 1 by default, and so has ours;
`gap_aware` is a choice of this project, not the paper's equation 3. Clipping is by element, as in the authors' code.
A quadratic needs alpha s < 1 - beta, where s is the share of the distance to its minimiser that a round of local work
covers: half of what a method without delay bears at beta = 0. Down 1 vector, up 1 vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch

from algorithms.parts import local_sgd
from fedsim import Clients, Local, Vector
from fedsim.checks import in_range, positive

Gap: TypeAlias = Callable[[Vector, Vector, Vector], tuple[Vector, Vector]]
"""Lambda_t and its new memory, both 0-dim, as a function of x_t - x_{t-1}, D and that memory, which begins at 0."""


class CO2State(NamedTuple):
    x: Vector  # [d] x_t, where all begin the next round
    in_flight: Vector  # [d] mean of y_{t-1,i} - x_{t-1}, under way
    moved: Vector  # [d] x_t - x_{t-1}
    m: Vector  # [d] outer momentum
    gap: Vector  # [] memory of the staleness gap


@dataclass(frozen=True)
class CO2:
    """Local steps with an outer optimiser, whose all-reduce is one round late and hidden behind local work.

    Args:
        lr: inner step size eta.
        outer_lr: outer step size alpha.
        outer_momentum: beta.
        clip: largest element phi of the momentum; none by default.
        gap: staleness gap Lambda_t, such as ``algorithms.co2.gap_aware``; 1 by default.
    """

    lr: float = 0.1
    outer_lr: float = 1.0
    outer_momentum: float = 0.2
    clip: float | None = None
    gap: Gap | None = None
    fixed_workers = True

    def __post_init__(self) -> None:
        positive(self, "lr", "outer_lr", *(["clip"] if self.clip is not None else []))
        in_range(self, "outer_momentum", 0, 1)

    def init(self, x: Vector, clients: Clients) -> CO2State:
        zero = torch.zeros_like(x)
        return CO2State(x, zero, zero, zero, zero[0])

    def round(self, s: CO2State, clients: Clients) -> CO2State:
        in_flight = clients.mean(clients.each(self.client, s.x), behind=1.0)
        return self.outer(s)._replace(in_flight=in_flight)

    def finish(self, s: CO2State, clients: Clients) -> CO2State:
        """The state after the last all-reduce has arrived."""
        return self.outer(s)._replace(in_flight=torch.zeros_like(s.x))

    def outer(self, s: CO2State) -> CO2State:
        """The outer step, with what has arrived."""
        moved, m, gap = outer_step(self, -s.in_flight, s.moved, s.m, s.gap)
        return s._replace(x=s.x + moved, moved=moved, m=m, gap=gap)

    def client(self, local: Local, x: Vector) -> Vector:
        return local_sgd(local, x, self.lr) - x


class Outer(Protocol):
    """Settings of the outer step."""

    @property
    def outer_lr(self) -> float: ...
    @property
    def outer_momentum(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    @property
    def gap(self) -> Gap | None: ...


def outer_step(by: Outer, D: Vector, moved: Vector, m: Vector, memory: Vector) -> tuple[Vector, Vector, Vector]:
    """x_{t+1} - x_t, the new momentum, and the new memory of the staleness gap."""
    if by.gap is not None:
        Lambda, memory = by.gap(moved, D, memory)
        D = D / Lambda
    m = by.outer_momentum * m + D
    m = m if by.clip is None else m.clamp(-by.clip, by.clip)
    return -by.outer_lr * m, m, memory


def gap_aware(moved: Vector, D: Vector, largest: Vector) -> tuple[Vector, Vector]:
    """``1 + RMS(x_t - x_{t-1}) / C_t`` with C_t the largest RMS(D) so far, after Barkai et al., ICLR 2020."""
    largest = torch.maximum(largest, D.square().mean().sqrt())
    distance = moved.square().mean().sqrt()
    return 1 + torch.where(largest > 0, distance / largest.clamp(min=1e-30), largest), largest
