"""Availability: the windows of time in which each client can begin to work."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim import seeds
from fedsim.checks import positive
from fedsim.errors import ConfigError

PHASES = 64
"""Windows drawn for each client, after which they repeat."""


class Windows:
    """Windows of every client, which repeat after a period.

    Args:
        windows: for each client ``[k, 2]`` beginnings and ends in seconds.
        periods: ``[n]`` seconds after which a client's windows repeat.

    Raises:
        ConfigError: a client has no window, or a window ends before it begins or after the period.
    """

    def __init__(self, windows: Sequence[np.ndarray], periods: np.ndarray) -> None:
        self.windows, self.periods = windows, periods
        self._starts: list[list[float]] = []
        self._ends: list[list[float]] = []
        for client, (own, period) in enumerate(zip(windows, periods.tolist(), strict=True)):
            rows = own[np.argsort(own[:, 0])] if len(own) else own.reshape(0, 2)
            if not (rows[:, 1] > rows[:, 0]).any():
                raise ConfigError(
                    f"client {client} is never available: it has no window with an end after its start; leave such"
                    " clients out of the trace"
                )
            if rows[0, 0] < 0 or (rows[:, 1] < rows[:, 0]).any() or rows[:, 1].max() > period:
                raise ConfigError(
                    f"client {client} has the windows {rows.tolist()!r:.80} with the period {period:g} s; expected"
                    " 0 <= start <= end <= period"
                )
            self._starts.append(rows[:, 0].tolist())
            self._ends.append(np.maximum.accumulate(rows[:, 1]).tolist())

    def begin(self, client: int, time: float) -> float:
        """The first time from ``time`` on at which a client is available, in seconds."""
        period = float(self.periods[client])
        turns, within = divmod(time, period)
        starts, ends = self._starts[client], self._ends[client]
        k = bisect_right(starts, within) - 1
        if k >= 0 and within < ends[k]:
            return time
        while k + 1 < len(starts) and ends[k + 1] <= starts[k + 1]:   # of no length
            k += 1
        ahead = starts[k + 1] if k + 1 < len(starts) else period + next(
            s for s, e in zip(starts, ends, strict=True) if e > s
        )
        return turns * period + ahead


class Availability(Protocol):
    """Times at which clients are available."""

    def windows(self, n: int, seed: int) -> Windows:
        """Windows of ``n`` clients."""


@dataclass(frozen=True)
class OnOff:
    """Clients that are available and absent in turn, for exponentially distributed times: a two-state Markov chain.

    The default is a model of the order of a measured trace of phones (FLHetBench, CVPR 2024): available for minutes,
    absent for hours.

    Args:
        available: mean seconds for which a client stays available.
        absent: mean seconds for which it stays absent.
    """

    available: float = 600.0
    absent: float = 14400.0

    def __post_init__(self) -> None:
        positive(self, "available", "absent")

    def windows(self, n: int, seed: int) -> Windows:
        """See ``Availability``."""
        draws = [
            -mean * np.log1p(-seeds.uniform(seed, f"availability {name}", 0, np.arange(n)[:, None], np.arange(PHASES)))
            for name, mean in (("absent", self.absent), ("available", self.available))
        ]
        share = self.available / (self.available + self.absent)
        first = seeds.uniform(seed, "availability now", 0, np.arange(n)) < share
        draws[0][first, 0] = 0.0                           # as in a chain that has run for long
        ends = np.cumsum(draws[0] + draws[1], axis=1)
        rows = np.stack([ends - draws[1], ends], axis=-1)
        return Windows(list(rows), ends[:, -1])


AVAILABILITIES: tuple[type[Availability], ...] = (OnOff,)
