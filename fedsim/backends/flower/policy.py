"""What happens when a node does not answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedsim.errors import ConfigError

Missing = Literal["skip", "stop"]


@dataclass(frozen=True)
class Policy:
    """What happens when a node does not answer.

    Args:
        timeout: seconds within which a call must be answered.
        retries: how often a call that failed is made again.
        missing: "skip": the round goes on without the node; "stop": the run ends with an error.
        minimum: least share of a cohort with which a round is completed, above 0 and at most 1.
        patience: seconds to wait for nodes when there are too few.
    """

    timeout: float = 600.0
    retries: int = 1
    missing: Missing = "skip"
    minimum: float = 0.5
    patience: float = 120.0

    def __post_init__(self) -> None:
        for name, value, least in (("timeout", self.timeout, 1e-3), ("patience", self.patience, 0.0)):
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} is {value} s; expected a finite number of seconds, {least:g} or more")
        if self.retries < 0:
            raise ConfigError(f"retries is {self.retries}; expected 0 or more")
        if self.missing not in get_args(Missing):
            raise ConfigError(f"missing is {self.missing!r}; expected one of {', '.join(get_args(Missing))}")
        if not 0 < self.minimum <= 1:
            raise ConfigError(f"minimum is {self.minimum}; expected a share of the cohort, above 0 and at most 1")

    def enough(self, cohort: int) -> int:
        """How many of a cohort a round needs."""
        return cohort if self.missing == "stop" else max(1, math.ceil(self.minimum * cohort - 1e-9))
