"""For whom a server waits in synchronous rounds: over-selection, deadlines, a minimum, and clients that go away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.checks import number, one_of, whole
from fedsim.errors import ConfigError


@dataclass(frozen=True)
class Waiting:
    """For whom the server waits in a synchronous round; by default for its whole cohort, however late it is.

    A round is closed for the others: they take no part in it, and are charged what they had done until then.

    Args:
        first: messages for which the server waits in an exchange; choose larger cohorts (over-selection).
        deadline: seconds after the server's call at which it waits no longer.
        minimum: fewest messages with which it makes a step.
        otherwise: what it does at the deadline with fewer: "wait" for these, "skip" the round, or "fail".
        dropout: probability with which a client goes away during a task, at a uniformly drawn point of it. Those whose
            window of ``clock.availability`` ends go away besides.
        present: call clients that are available when the round begins, or when the first of all is, and no others.
    """

    first: int | None = None
    deadline: float | None = None
    minimum: int = 1
    otherwise: Literal["wait", "skip", "fail"] = "wait"
    dropout: float = 0.0
    present: bool = False

    def __post_init__(self) -> None:
        whole("waiting.minimum", self.minimum, 1)
        if self.first is not None:
            whole("waiting.first", self.first, 1, ", or none to wait for all")
            if self.minimum > self.first:
                raise ConfigError(
                    f"waiting.minimum is {self.minimum}, and the server waits for the first {self.first}; expected at"
                    " most that many"
                )
        if self.deadline is not None:
            number("waiting.deadline", self.deadline, lambda v: v > 0, "a finite number of seconds above 0")
        number("waiting.dropout", self.dropout, lambda v: 0 <= v < 1, "a probability from 0 to below 1")
        one_of(self, "otherwise", ("wait", "skip", "fail"))
        if not isinstance(self.present, bool):
            raise ConfigError(f"waiting.present is {self.present!r}; expected true or false")

    def expected(self, cohort: float) -> float:
        """Expected number of messages in a round, for a ``cohort`` of so many clients in expectation.

        Raises:
            ConfigError: there are never enough.
        """
        for name, least in (("first", self.first or 1), ("minimum", self.minimum)):
            if least > np.ceil(cohort):
                raise ConfigError(
                    f"waiting.{name} is {least}, and {cohort:g} clients are called in a round; expected at most that"
                    " many, or a larger sampling"
                )
        return min(cohort, self.first or cohort)

    def closes(self, arrivals: np.ndarray) -> tuple[float, int]:
        """When an exchange closes, in seconds since the call, and the most messages that then count.

        Args:
            arrivals: seconds ``[c]`` since the call at which messages arrive, sorted; inf for those that never do.

        Returns:
            The time, inf where the server waits for more messages than arrive, and their number.
        """
        first = min(self.first or len(arrivals), len(arrivals))
        end = float(arrivals[first - 1])
        if self.deadline is not None and end > self.deadline:
            late = float(arrivals[self.least(len(arrivals)) - 1]) if self.otherwise == "wait" else 0.0
            end = max(self.deadline, late)
        return end, first

    def least(self, called: int) -> int:
        """Fewest messages of so many clients with which the server makes a step."""
        return min(self.minimum, called)
