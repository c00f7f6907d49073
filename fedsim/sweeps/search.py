"""Search for the settings of a method: which are tried, for how many rounds, and which are kept.

Random search draws settings (Bergstra and Bengio 2012). Successive halving (Jamieson and Talwalkar 2016) runs all
settings for few rounds, and continues the best ``1 / eta`` of them for ``eta`` times as many, until few are left that
run for all rounds. A run that is continued equals one with as many rounds from the start.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from fedsim.checks import whole
from fedsim.errors import ConfigError
from fedsim.experiment.config import to_config
from fedsim.experiment.schedule import Cosine
from fedsim.report.labels import flat

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Experiment

SEARCHES = ("grid", "random", "halving")
SCALES = ("linear", "log")


@dataclass(frozen=True)
class Interval:
    """Values of a setting from ``low`` to ``high``, drawn uniformly on a scale.

    Args:
        low: least value.
        high: largest value.
        scale: ``linear``, or ``log`` for settings whose magnitude matters, such as step sizes.
    """

    low: float
    high: float
    scale: str = "log"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError(f"scale is {self.scale!r}; expected one of {', '.join(SCALES)}")
        known = all(isinstance(end, Real) and math.isfinite(end) for end in (self.low, self.high))
        if not known or not self.low < self.high or (self.scale == "log" and self.low <= 0):
            positive = "positive numbers, " if self.scale == "log" else "numbers, "
            raise ConfigError(f"an interval from {self.low!r} to {self.high!r}; expected {positive}low below high")

    def draw(self, share: float) -> float:
        """The value at this share of the interval, rounded to three digits to keep the names of runs short."""
        if self.scale == "linear":
            return float(f"{self.low + share * (self.high - self.low):.3g}")
        return float(f"{self.low * (self.high / self.low) ** share:.3g}")


Axis = Sequence[Any] | Interval
"""Values of a setting to choose from."""


def drawn(axes: Mapping[str, Axis], trials: int, seed: int) -> list[dict[str, Any]]:
    """Different random values of these settings: ``trials`` of them, or as many as there are."""
    rng = random.Random(f"settings {seed}")
    found: list[dict[str, Any]] = []
    for _ in range(100 * trials):
        if len(found) == trials:
            break
        chosen = {
            key: axis.draw(rng.random()) if isinstance(axis, Interval) else axis[rng.randrange(len(axis))]
            for key, axis in axes.items()
        }
        if chosen not in found:
            found.append(chosen)
    return found


def some_of(grid: Mapping[str, Experiment], trials: int | None, seed: int) -> dict[str, Experiment]:
    """A random sample of ``trials`` settings of a grid, in its order; all if it has no more, or without a number."""
    if trials is None or trials >= len(grid):
        return dict(grid)
    chosen = set(random.Random(f"settings {seed}").sample(sorted(grid), trials))
    return {name: made for name, made in grid.items() if name in chosen}


def rungs(rounds: int, settings: int, eta: int) -> list[int]:
    """Rounds after which settings are dropped, each ``eta`` times the one before; the last is ``rounds``."""
    steps = 0
    while eta ** (steps + 1) <= settings and rounds // eta ** (steps + 1) >= 1:
        steps += 1
    first = rounds // eta**steps
    return [*(first * eta**step for step in range(steps)), rounds]


def kept(values: Mapping[str, float], eta: int, lower: bool) -> list[str]:
    """The best ``1 / eta`` of the settings, at least one, in their order; settings that diverged are the worst."""
    worst = math.inf if lower else -math.inf
    sign = 1 if lower else -1
    ranked = sorted(values, key=lambda name: sign * (worst if math.isnan(values[name]) else values[name]))
    best = set(ranked[: max(1, len(values) // eta)])
    return [name for name in values if name in best]


def halving_trial(made: Experiment, first: int) -> Experiment:
    """A trial of ``first`` rounds that is measured at its end, and can be continued.

    Raises:
        ConfigError: it has a method or a criterion that ends a run.
    """
    name = type(made.algorithm).__name__
    from fedsim.robust.robust import innermost  # PyTorch, which help does not need

    if hasattr(innermost(made.algorithm), "finish"):
        raise ConfigError(f"halving continues runs, and {name}.finish ends them; search by grid or random instead")
    if made.stop is not None:
        raise ConfigError(f"halving gives runs more and more rounds, and stop ends those of {name}; leave out stop")
    schedule = made.schedule
    if isinstance(schedule, Cosine) and schedule.rounds is None:
        schedule = replace(schedule, rounds=made.rounds)   # its steps are then those of all rounds from the start
    evaluation = replace(made.evaluation, every=first, clients_every=1)
    return replace(made, rounds=first, schedule=schedule, evaluation=evaluation)


def check_search(search: str, trials: int | None, eta: int) -> None:
    """Check the settings of a search.

    Raises:
        ConfigError: the search is unknown, or has wrong numbers.
    """
    if search not in SEARCHES:
        raise ConfigError(f"search is {search!r}; expected one of {', '.join(SEARCHES)}")
    if trials is not None:
        whole("trials", trials, 1)
    if search == "random" and trials is None:
        raise ConfigError("a random search needs trials, the number of settings of each method, such as 10")
    if search == "grid" and trials is not None:
        raise ConfigError(f"trials is {trials}, and a grid tries all settings; search by random or halving")
    whole("eta", eta, 2)


def ends(grid: Mapping[str, Experiment], chosen: str) -> list[str]:
    """Remarks on numbers of the chosen setting that are the least or largest ones that were tried."""
    settings = {name: _numbers(to_config(made)) for name, made in grid.items()}
    found = []
    for key, value in settings[chosen].items():
        tried = {own[key] for own in settings.values() if key in own}
        if len(tried) > 1 and value in (min(tried), max(tried)):
            found.append(f"{key}={value:g} is the {'least' if value == min(tried) else 'largest'} that was tried")
    return found


def _numbers(config: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a configuration by their dotted names."""
    leaves = flat(config)
    return {key: value for key, value in leaves if isinstance(value, int | float) and not isinstance(value, bool)}
