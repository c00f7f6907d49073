"""A virtual clock that follows rounds only when its time is asked for.

Training evicts the clock's data from the processor's caches, so following every round right after it takes three times
as long as following several in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fedsim.clock.virtual import VirtualClock
from fedsim.messages.trace import Phase
from fedsim.record.timeline import Timeline

MOST_ROUNDS = 64
"""Rounds that are kept at most before the clock follows them."""


class LazyClock:
    """A clock, and the traces of rounds that it has not followed yet.

    Args:
        clock: the clock, which is up to date after `settle`.
        lazy: False to follow each round at once, for callers that read the clock in every round.
    """

    def __init__(self, clock: VirtualClock, *, lazy: bool) -> None:
        self._clock, self._lazy = clock, lazy
        self._rounds: list[tuple[Sequence[Phase], int]] = []
        self._followed = clock.snapshot()                  # before these rounds

    def advance(self, trace: Sequence[Phase], round: int) -> None:
        """Note the trace of a round; a clock that records a timeline follows it at once.

        Raises:
            ConfigError: see ``VirtualClock.advance``, perhaps some rounds later.
        """
        self._rounds.append((tuple(trace), round))
        if not self._lazy or self._clock.timeline is not None or len(self._rounds) == MOST_ROUNDS:
            self.settle()

    def settle(self) -> VirtualClock:
        """The clock, after all rounds."""
        rounds, self._rounds = self._rounds, []
        for trace, round in rounds:
            self._clock.advance(trace, round)
        if rounds:
            self._followed = self._clock.snapshot()
        return self._clock

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self.settle().now

    @property
    def timeline(self) -> Timeline | None:
        """What the clock records."""
        return self._clock.timeline

    @timeline.setter
    def timeline(self, timeline: Timeline | None) -> None:
        self.settle().timeline = timeline

    def freeze(self) -> Callable[[], dict[str, Tensor]]:
        """The times as they are now: a function that names them for a checkpoint."""
        devices, before, rounds = self._clock.devices, self._followed, tuple(self._rounds)

        def named() -> dict[str, Tensor]:
            then = VirtualClock(devices)
            then.restore(before)
            for trace, round in rounds:
                then.follow(trace, round)
            return then.snapshot()

        return named

    def restore(self, state: Mapping[str, Tensor], *_: object) -> None:
        """Go back to what `freeze` named."""
        self._clock.restore(state)
        self._rounds, self._followed = [], self._clock.snapshot()
