"""Step sizes within a round: factors of the step size of each local step of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.checks import in_range, whole
from fedsim.errors import ConfigError, explained


@dataclass(frozen=True)
class _Decaying:
    """Warm-up from 1 / (warmup + 1) to 1, then a decay towards ``floor`` that a further step would reach.

    Args:
        floor: factor at the end of the decay; 1 for warm-up alone.
        warmup: number of first steps below 1, in equal increments.
    """

    floor: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        in_range(self, "floor", 0, 1, closed=True)
        whole(f"{type(self).__name__}.warmup", self.warmup, 0)

    def __call__(self, k: np.ndarray, steps: int) -> np.ndarray:
        """Factors of the steps ``k [K]``, from 0 on, of a round of so many ``steps``."""
        rising = (k + 1) / (self.warmup + 1)
        done = np.clip((k - self.warmup) / max(1, steps - self.warmup), 0.0, 1.0)
        falling = self.floor + (1 - self.floor) * self._left(done)
        factors: np.ndarray = np.where(k < self.warmup, rising, falling)
        return factors

    def _left(self, done: np.ndarray) -> np.ndarray:
        """Factors between 1 and 0 after these shares of the falling steps; abstract."""
        raise NotImplementedError


@dataclass(frozen=True)
class CosineSteps(_Decaying):
    """Cosine decay over a client's local steps of a round, after a linear warm-up.

    Args:
        floor: factor at the end of the decay, which a further step would have.
        warmup: number of first steps with factors 1 / (warmup + 1), 2 / (warmup + 1), ...
    """

    def _left(self, done: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.cos(np.pi * done))


@dataclass(frozen=True)
class LinearSteps(_Decaying):
    """Linear decay over a client's local steps of a round, after a linear warm-up.

    Args:
        floor: factor at the end of the decay, which a further step would have; 1 for warm-up alone.
        warmup: number of first steps with factors 1 / (warmup + 1), 2 / (warmup + 1), ...
    """

    def _left(self, done: np.ndarray) -> np.ndarray:
        return 1 - done


STEP_SCHEDULES = (CosineSteps, LinearSteps)


def factors_of(schedule: Any, steps: int) -> np.ndarray:
    """Factors ``[steps]`` of the local steps of a round.

    Raises:
        ConfigError: a user's schedule gave something else than finite numbers, 0 or more.
        CodeError: it raised.
    """
    name = f"local.step_schedule {type(schedule).__name__}"
    with explained(name):
        found = np.asarray(schedule(np.arange(steps), steps))
    if found.shape != (steps,) or found.dtype.kind not in "fiu" or not (np.isfinite(found) & (found >= 0)).all():
        raise ConfigError(
            f"{name} gave {found!r:.80} for a round of {steps} steps; expected {steps} finite numbers, 0 or more"
        )
    return found.astype(np.float64)


def check_schedule(schedule: Any) -> None:
    """Raise ConfigError unless ``schedule`` is one, tried on short rounds."""
    if isinstance(schedule, type) or not callable(schedule):
        raise ConfigError(
            f"local.step_schedule is {schedule!r:.200}; expected a schedule such as CosineSteps(warmup=5), or a"
            " function of step numbers [K] and their count K that returns factors [K]"
        )
    for steps in (1, 2, 7):
        factors_of(schedule, steps)
