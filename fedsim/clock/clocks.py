"""Settings of a clock: the devices of clients from distributions, written out, or from files of measured traces."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from fedsim import seeds
from fedsim.checks import in_range, non_negative, share, whole
from fedsim.clock.devices import LONGEST, Devices
from fedsim.clock.distributions import Distribution, LogNormal
from fedsim.clock.traces import read_speeds, read_windows
from fedsim.clock.windows import Availability, Windows
from fedsim.errors import ConfigError, many

Values: TypeAlias = Distribution | float | tuple[float, ...]
"""A distribution over clients, one number for all, or a number for each."""


class Timing(Protocol):
    """A clock as a setting of an experiment."""

    def devices(self, n: int, seed: int) -> Devices:
        """The devices of ``n`` clients; raises ConfigError if there are too few of them."""


@dataclass(frozen=True)
class Clock:
    """Devices and links drawn from distributions, given as a number for all clients, or written out for each.

    The defaults model phones, after quantiles of measured traces (FLHetBench, CVPR 2024, and FedScale): compute times
    that differ tenfold between the 5th and the 95th percentile, a median of 6 Mbit/s down and half of it up. They are
    a model, not a measurement.

    Args:
        seconds: seconds for one gradient evaluation, of one sample.
        bandwidth_down: bit/s that a client receives (1 Mbit/s is 1e6).
        up_share: bandwidth up as a share of the bandwidth down, unless ``bandwidth_up`` is given.
        bandwidth_up: bit/s that a client sends.
        latency: seconds that each message is delayed on the client's side of a link.
        jitter: coefficient of variation of a client's compute seconds from one round to the next.
        server_down: bit/s that the server receives, shared by all who send at once; unlimited by default.
        server_up: bit/s that the server sends.
        availability: times at which clients are available, such as OnOff; always by default.
        groups: number of groups, such as offices or regions, among which clients are dealt at random; a group has one
            line to the others and to the server, a second level of links. 0 for none.
        group_bandwidth: bit/s of a group's line in each direction, shared by all of its clients at once; unlimited by
            default.
        group_latency: seconds that it delays each message.
    """

    seconds: Values = field(default_factory=lambda: LogNormal(0.01, 0.8))
    bandwidth_down: Values = field(default_factory=lambda: LogNormal(6e6, 0.9))
    up_share: float = 0.5
    bandwidth_up: Values | None = None
    latency: Values = 0.05
    jitter: float = 0.3
    server_down: float | None = None
    server_up: float | None = None
    availability: Availability | None = None
    groups: int = 0
    group_bandwidth: float | None = None
    group_latency: float = 0.0

    def __post_init__(self) -> None:
        for name, above in (("seconds", False), ("bandwidth_down", True), ("bandwidth_up", True), ("latency", False)):
            if not (name == "bandwidth_up" and self.bandwidth_up is None):
                _check_values(f"Clock.{name}", getattr(self, name), above)
        share(self, "up_share")
        in_range(self, "jitter", 0, 100, closed=True)
        whole("Clock.groups", self.groups, 0, "; 0 for none")
        non_negative(self, "group_latency")
        if not self.groups and (self.group_bandwidth is not None or self.group_latency):
            raise ConfigError("Clock.group_bandwidth and group_latency are of groups, and there are none; set groups")
        for name in ("server_down", "server_up", "group_bandwidth"):
            if getattr(self, name) is not None:
                _check_values(f"Clock.{name}", getattr(self, name), True)
        if self.availability is not None and not callable(getattr(self.availability, "windows", None)):
            raise ConfigError(f"Clock.availability is {self.availability!r}; expected e.g. OnOff(600, 14400)")

    def devices(self, n: int, seed: int) -> Devices:
        """See ``Timing``."""
        down = _values("bandwidth_down", self.bandwidth_down, n, seed) / 8
        up = self.up_share * down
        if self.bandwidth_up is not None:
            up = _values("bandwidth_up", self.bandwidth_up, n, seed) / 8
        return Devices(
            _values("seconds", self.seconds, n, seed), down, up, _values("latency", self.latency, n, seed),
            jitter=self.jitter,
            server_down=math.inf if self.server_down is None else self.server_down / 8,
            server_up=math.inf if self.server_up is None else self.server_up / 8,
            windows=None if self.availability is None else self.availability.windows(n, seed),
            seed=seed,
            groups=self._groups(n, seed),
            group_rate=math.inf if self.group_bandwidth is None else self.group_bandwidth / 8,
            group_latency=float(self.group_latency),
        )  # fmt: skip

    def _groups(self, n: int, seed: int) -> np.ndarray | None:
        """The group of each client ``[n]``, of sizes that differ by one at most."""
        if not self.groups:
            return None
        if self.groups > n:
            clients = many(n, "client")
            raise ConfigError(f"Clock.groups is {self.groups}, and the run has {clients}; expected at most as many")
        groups = np.empty(n, np.int64)
        groups[np.argsort(seeds.bits(seed, "device group", 0, np.arange(n)))] = np.arange(n) % self.groups
        return groups


@dataclass(frozen=True)
class TracedClock:
    """Devices from a file of measured traces, CSV, JSON or npz, one row a client.

    The columns are ``client``, ``ms_per_sample`` (milliseconds of inference for one sample, as FedScale measures),
    ``down_kbps`` and ``up_kbps`` (1000 bit/s). Clients of the run take the rows with their numbers if the file has
    exactly these; otherwise rows are drawn by the seed, without replacement.

    Args:
        path: the file.
        availability_path: file with the columns ``client``, ``start_s`` and ``end_s``, one row for each window in which
            a client is available; always available by default.
        period: seconds after which windows repeat, such as 86400 for a day; by default each client's last end.
        backward: gradient time over inference time; 3 is FedScale's.
        repeat: draw rows with replacement, for a trace with fewer clients than the run.
        latency: seconds that each message is delayed.
        jitter: coefficient of variation of a client's compute seconds from one round to the next.
    """

    path: str
    availability_path: str | None = None
    period: float | None = None
    backward: float = 3.0
    repeat: bool = False
    latency: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        non_negative(self, "latency")
        in_range(self, "jitter", 0, 100, closed=True)
        in_range(self, "backward", 1, 1000, closed=True)
        if self.period is not None and not self.period > 0:
            raise ConfigError(f"TracedClock.period is {self.period!r}; expected seconds above 0, such as 86400")

    def devices(self, n: int, seed: int) -> Devices:
        """See ``Timing``."""
        names, ms, down, up = read_speeds(Path(self.path).expanduser())
        row = self._rows(names, n, seed, self.path, "device")
        return Devices(
            ms[row] * self.backward / 1000, down[row] * 125, up[row] * 125, np.full(n, float(self.latency)),
            jitter=self.jitter, windows=self._windows(n, seed), seed=seed,
        )  # fmt: skip

    def _windows(self, n: int, seed: int) -> Windows | None:
        if self.availability_path is None:
            return None
        names, windows, periods = read_windows(Path(self.availability_path).expanduser(), self.period)
        rows = self._rows(names, n, seed, self.availability_path, "availability").tolist()
        return Windows([windows[row] for row in rows], periods[rows])

    def _rows(self, names: list[str], n: int, seed: int, path: str, purpose: str) -> np.ndarray:
        """Rows of a file for the clients of the run."""
        where = {name: row for row, name in enumerate(names)}
        if set(where) == {str(i) for i in range(n)}:
            return np.array([where[str(i)] for i in range(n)])
        if self.repeat:
            drawn: np.ndarray = (seeds.uniform(seed, f"{purpose} trace", 0, np.arange(n)) * len(names)).astype(np.int64)
            return drawn
        if len(names) < n:
            raise ConfigError(
                f"{path} has {many(len(names), 'client')}, and the run has {n}; expected at least as many, or set"
                " clock.repeat true to draw them with replacement"
            )
        return np.argsort(seeds.bits(seed, f"{purpose} trace", 0, np.arange(len(names))))[:n]


def _check_values(place: str, values: Any, above: bool) -> None:
    if isinstance(values, type) or not (isinstance(values, Real | tuple | list) or hasattr(values, "quantile")):
        some = "a number, a number for each client, or a distribution such as LogNormal(1, 0.8)"
        raise ConfigError(f"{place} is {values!r}; expected {some}")
    for value in values if isinstance(values, tuple | list) else [values]:
        if hasattr(value, "quantile"):
            continue
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not (value > 0 if above else 0 <= value <= LONGEST):
            expected = "a number of bit/s above 0" if above else "a number of seconds from 0 to 9e9 (285 years)"
            raise ConfigError(f"{place} is {value!r}; expected {expected}")


def _values(name: str, values: Values, n: int, seed: int) -> np.ndarray:
    """The values of ``n`` clients, float64 ``[n]``."""
    if isinstance(values, tuple | list):
        if len(values) != n:
            raise ConfigError(
                f"clock.{name} has {many(len(values), 'value')}, and the run {many(n, 'client')}; expected one for each"
            )
        return np.array(values, np.float64)
    if isinstance(values, int | float):
        return np.full(n, float(values))
    return np.asarray(values.quantile(seeds.uniform(seed, f"device {name}", 0, np.arange(n))), np.float64)


CLOCKS: tuple[type[Timing], ...] = (Clock, TracedClock)
