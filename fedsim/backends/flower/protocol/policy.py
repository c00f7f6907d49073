"""Failure policy: timeouts, retries, and the quorum of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedsim.checks import number, whole
from fedsim.errors import ConfigError

Missing = Literal["skip", "stop"]


@dataclass(frozen=True)
class Policy:
    """Reaction to nodes that do not respond.

    Args:
        timeout: seconds to wait for a response; "auto" is ten times the slowest one so far, at least a minute, and ten
            minutes for the first.
        retries: of a failed call.
        missing: "skip": the round continues without the node; "stop": the run ends with an error.
        minimum: smallest share of a cohort that completes a round, above 0 and at most 1.
        patience: seconds to wait for nodes when too few are connected.
    """

    timeout: float | Literal["auto"] = "auto"
    retries: int = 1
    missing: Missing = "skip"
    minimum: float = 0.5
    patience: float = 120.0

    def __post_init__(self) -> None:
        if self.timeout != "auto":
            number("timeout", self.timeout, lambda v: v >= 1e-3, "a finite number of seconds, 0.001 or more, or auto")
        number("patience", self.patience, lambda v: v >= 0, "a finite number of seconds, 0 or more")
        whole("retries", self.retries, 0)
        if self.missing not in get_args(Missing):
            raise ConfigError(f"missing is {self.missing!r}; expected one of {', '.join(get_args(Missing))}")
        number("minimum", self.minimum, lambda v: 0 < v <= 1, "a share of the cohort, above 0 and at most 1")

    def enough(self, cohort: int) -> int:
        """Quorum: number of clients of a cohort that a round needs."""
        return cohort if self.missing == "stop" else max(1, math.ceil(self.minimum * cohort - 1e-9))
