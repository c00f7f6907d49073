"""Availability: the windows of time in which each client can begin to work."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim import seeds
from fedsim.checks import in_range, non_negative, positive
from fedsim.clock.distributions import normal_quantile
from fedsim.errors import ConfigError

PHASES = 64
"""Windows drawn for each client, after which they repeat."""
DAY = 86400.0
"""Seconds."""


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

    def end(self, client: int, time: float) -> float:
        """When the window ends that contains ``time``, or else the next one; inf for a client that is never absent."""
        period = float(self.periods[client])
        turns, within = divmod(time, period)
        starts, ends = self._starts[client], self._ends[client]
        k = bisect_right(starts, within) - 1
        if k < 0 or within >= ends[k]:
            turns, within = divmod(self.begin(client, time), period)
            k = min(bisect_right(starts, within + 1e-9 * period), len(starts)) - 1   # rounding
        end = ends[k]
        for _ in range(len(starts)):                       # windows that follow without a gap
            if k + 1 == len(starts) and end == period:
                k, end, turns = -1, 0.0, turns + 1
            if k + 1 == len(starts) or starts[k + 1] > end:
                return turns * period + end
            k, end = k + 1, ends[k + 1]
        return np.inf


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


@dataclass(frozen=True)
class Daily:
    """Clients that are available once a day, as phones that are charged at night: a window of every client.

    Args:
        hour: hour of the day, 0 to 24, at which windows begin in the mean; a run begins at hour 0.
        hours: length of a window, at most 24.
        spread: standard deviation in hours of the clients' beginnings, which are normal: habits and time zones.
    """

    hour: float = 22.0
    hours: float = 8.0
    spread: float = 2.0

    def __post_init__(self) -> None:
        in_range(self, "hour", 0, 24)
        positive(self, "hours")
        in_range(self, "hours", 0, 24, closed=True)
        non_negative(self, "spread")

    def windows(self, n: int, seed: int) -> Windows:
        """See ``Availability``."""
        drawn = normal_quantile(seeds.uniform(seed, "availability hour", 0, np.arange(n)))
        start = (self.hour + self.spread * drawn) % 24 * 3600
        end = start + self.hours * 3600
        rows = [
            np.array([[a, min(b, DAY)]] if b <= DAY else [[0.0, b - DAY], [a, DAY]])
            for a, b in zip(start.tolist(), end.tolist(), strict=True)
        ]
        return Windows(rows, np.full(n, DAY))


AVAILABILITIES: tuple[type[Availability], ...] = (OnOff, Daily)
