"""Learning-rate schedules: the factor by which a round's local step sizes are multiplied. Rounds count from 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fedsim.checks import at_least_one, in_range, positive
from fedsim.errors import ConfigError


class Schedule(Protocol):
    """Round number to factor."""

    def __call__(self, round: int) -> float:
        """The factor in this round, 1 or more being the first."""


@dataclass(frozen=True)
class Constant:
    """The step size as it is."""

    def __call__(self, round: int) -> float:
        """See ``Schedule``."""
        return 1.0


@dataclass(frozen=True)
class ExponentialDecay:
    """``decay ** (round - 1)``, as most federated papers decay.

    Args:
        decay: factor from one round to the next.
    """

    decay: float = 0.998

    def __post_init__(self) -> None:
        positive(self, "decay")

    def __call__(self, round: int) -> float:
        """See ``Schedule``."""
        return float(self.decay ** max(0, round - 1))


@dataclass(frozen=True)
class Steps:
    """Multiplied by ``factor`` after each of the given rounds.

    Args:
        milestones: rounds after which the step size drops.
        factor: what it is multiplied by.
    """

    milestones: tuple[int, ...] = (100,)
    factor: float = 0.5

    def __post_init__(self) -> None:
        positive(self, "factor")

    def __call__(self, round: int) -> float:
        """See ``Schedule``."""
        return float(self.factor ** sum(round > m for m in self.milestones))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to ``floor`` over ``rounds`` rounds, then constant.

    Args:
        rounds: length of the descent; in an experiment that of the whole run by default.
        floor: final factor.
    """

    rounds: int | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds is not None:
            at_least_one(self, "rounds")
        in_range(self, "floor", 0, 1, closed=True)

    def __call__(self, round: int) -> float:
        """See ``Schedule``.

        Raises:
            ConfigError: its length was left to an experiment.
        """
        if self.rounds is None:
            raise ConfigError("Cosine.rounds is None, which an experiment replaces by its own; give the length here")
        done = min(1.0, max(0, round - 1) / self.rounds)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, type[Schedule]] = {
    "Constant": Constant, "Exponential": ExponentialDecay, "Steps": Steps, "Cosine": Cosine,
}  # fmt: skip
