"""Learning-rate schedules: factors of the local step sizes by round. Rounds count from 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim.checks import at_least_one, in_range, positive, takes
from fedsim.errors import ConfigError, explained


class Schedule(Protocol):
    """Factor of the local step sizes as a function of the round."""

    def __call__(self, round: int) -> float:
        """Factor in a round; rounds count from 1."""


@dataclass(frozen=True)
class Constant:
    """A constant step size."""

    def __call__(self, round: int) -> float:
        """See ``Schedule``."""
        return 1.0


@dataclass(frozen=True)
class ExponentialDecay:
    """Exponential decay ``decay ** (round - 1)``, as in most federated papers.

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
    """Step decay: multiplication by ``factor`` after each of the given rounds.

    Args:
        milestones: rounds after which the step size drops.
        factor: multiplier at each drop.
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
    """Cosine decay from 1 to ``floor`` over ``rounds`` rounds, then constant.

    Args:
        rounds: length of the decay; by default all rounds of the experiment.
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
            ConfigError: ``rounds`` is None, which only an experiment resolves.
        """
        if self.rounds is None:
            raise ConfigError("Cosine.rounds is None, which an experiment replaces by its own; give the length here")
        done = min(1.0, max(0, round - 1) / self.rounds)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


SCHEDULES: dict[str, type[Schedule]] = {
    "Constant": Constant, "Exponential": ExponentialDecay, "Steps": Steps, "Cosine": Cosine,
}  # fmt: skip


def check_factors(schedule: Schedule, rounds: int) -> None:
    """Check what a schedule gives in each of ``rounds`` rounds.

    Raises:
        ConfigError: it takes another argument than the round, or a factor is no finite number, 0 or more.
        CodeError: it raised.
    """
    name = f"schedule {getattr(schedule, '__name__', type(schedule).__name__)}"
    takes(name, schedule, "round")
    for round in range(1, rounds + 1):
        with explained(name):
            factor = np.asarray(schedule(round))
        if factor.ndim or factor.dtype.kind not in "fiu" or not 0 <= factor < np.inf:
            given = repr(factor.tolist())
            raise ConfigError(f"{name} gave {given:.80} in round {round}; expected a finite number, 0 or more")
