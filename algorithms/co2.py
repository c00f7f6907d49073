"""CO2: Sun, Qin, Sun, Li, Li, Shen, Qiao, Zhong, ICLR 2024: communication behind the whole of the next local work.

    worker i:  y_i <- x_t;   tau times an inner step;   launch the all-reduce of y_i, which ends within the next round
    meanwhile that of the round before arrives:
        D <- x_{t-1} - mean_i y_{t-1,i};   m <- clip(beta m + D / Lambda_t, phi);   x_{t+1} <- x_t - alpha m

All workers start round t from the same x_t, so local progress enters one round late. In round 1 nothing has arrived and
D = 0; `finish` applies the all-reduce that is still under way after the last round. The message is y_i - x_t, as all
workers know x_t. The staleness gap Lambda_t divides the late D. As in the authors' code it is a constant, 1 by default;
`gap_aware` is a choice of this project, not the paper's equation 3. Clipping is by element, as in the authors' code. On
a quadratic CO2 is stable for alpha s < 1 - beta, where s is the share of the distance to the minimiser that a round of
local work covers: at beta = 0, half of what is stable without delay. Down 1 vector, up 1 vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

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
        check_outer(self)

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


def check_outer(settings: Any) -> None:
    """Require the settings of `outer_step`, and the inner step size, to be in range."""
    positive(settings, "lr", "outer_lr")
    in_range(settings, "outer_momentum", 0, 1)
    if settings.clip is not None:
        positive(settings, "clip")


def outer_step(
    settings: Any, D: Vector, moved: Vector, m: Vector, memory: Vector
) -> tuple[Vector, Vector, Vector]:
    """x_{t+1} - x_t, the new momentum, and the new memory of the staleness gap, with the settings of CO2 or DCO2."""
    if settings.gap is not None:
        Lambda, memory = settings.gap(moved, D, memory)
        D = D / Lambda
    m = settings.outer_momentum * m + D
    m = m if settings.clip is None else m.clamp(-settings.clip, settings.clip)
    return -settings.outer_lr * m, m, memory


def gap_aware(moved: Vector, D: Vector, largest: Vector) -> tuple[Vector, Vector]:
    """``1 + RMS(x_t - x_{t-1}) / C_t`` with C_t the largest RMS(D) so far, after Barkai et al., ICLR 2020."""
    largest = torch.maximum(largest, D.square().mean().sqrt())
    distance = moved.square().mean().sqrt()
    return 1 + torch.where(largest > 0, distance / largest.clamp(min=1e-30), largest), largest
