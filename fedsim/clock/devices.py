"""The devices and links of all clients of a run, as plain arrays, and the seconds that a task takes on them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from fedsim import seeds
from fedsim.clock.distributions import normal_quantile
from fedsim.clock.windows import Windows
from fedsim.errors import ConfigError, RunError
from fedsim.messages.trace import Computed

ARRAYS = ("seconds", "down", "up", "latency")
LONGEST = 9e9
"""Simulated seconds that a run can last, 285 years: whole nanoseconds up to here fit in 64 bits."""

AT_A_TIME = 4096
"""Numbers of the jitter that are drawn together."""


class TaskSeconds(NamedTuple):
    """Seconds ``[c]`` of tasks.

    Attributes:
        download: of what a client works with.
        begin: until it begins to compute, absence included.
        work: of computing.
        upload: of its message.
    """

    download: np.ndarray
    begin: np.ndarray
    work: np.ndarray
    upload: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """From the call to the arrival of the message."""
        seconds: np.ndarray = self.begin + self.work + self.upload
        return seconds


@dataclass(frozen=True)
class Devices:
    """The devices of ``n`` clients.

    Args:
        seconds: ``[n]`` seconds for each gradient evaluation.
        down: ``[n]`` bytes per second that a client receives.
        up: ``[n]`` bytes per second that it sends.
        latency: ``[n]`` seconds that each of its messages is delayed.
        jitter: coefficient of variation of the seconds of one client's tasks.
        server_down: bytes per second that the server receives from all clients together.
        server_up: bytes per second that it sends.
        windows: availability; always by default.
        seed: seed of the jitter.
        groups: ``[n]`` group of each client, whose line to the others and to the server its clients share; None for
            none.
        group_rate: bytes per second of a group's line, in each direction.
        group_latency: seconds that it delays each message.

    Raises:
        ConfigError: a client's value is out of range.
    """

    seconds: np.ndarray
    down: np.ndarray
    up: np.ndarray
    latency: np.ndarray
    jitter: float = 0.0
    server_down: float = np.inf
    server_up: float = np.inf
    windows: Windows | None = None
    seed: int = 0
    groups: np.ndarray | None = None
    group_rate: float = np.inf
    group_latency: float = 0.0
    _table: list[Any] = field(default_factory=lambda: [-1, None], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, above in (("seconds", False), ("down", True), ("up", True), ("latency", False)):
            values = getattr(self, name)
            good = values >= 1 / LONGEST if above else (values >= 0) & (values <= LONGEST)
            bad = np.flatnonzero(~good)
            if len(bad):
                what = {"down": "bandwidth down", "up": "bandwidth up"}.get(name, name)
                expected = "above 0, a byte in 285 years at least" if above else "0 or more, at most 9e9 (285 years)"
                given = values[bad[0]] * (8 if above else 1)
                raise ConfigError(f"clock: client {bad[0]} has {what} {given:g}; expected {expected}")
        for name in ("server_down", "server_up", "group_rate"):
            if not (rate := getattr(self, name)) >= 1 / LONGEST:
                raise ConfigError(f"clock.{name} is {rate * 8:g} bit/s; expected a byte in 285 years at least")

    @property
    def n(self) -> int:
        """Number of clients."""
        return len(self.seconds)

    def work(self, ids: np.ndarray, evaluations: np.ndarray, task: int | np.ndarray) -> np.ndarray:
        """Seconds ``[c]`` in which clients compute gradients; the jitter is a function of (seed, task, client)."""
        seconds: np.ndarray = evaluations * self.seconds[ids]
        return seconds * self._factors(ids, task) if self.jitter else seconds

    def _factors(self, ids: np.ndarray, task: int | np.ndarray) -> np.ndarray:
        """Jitter ``[c]``; that of a few clients is drawn for many rounds at a time."""
        if isinstance(task, np.ndarray) or self.n > AT_A_TIME:
            return self._drawn(ids, task)
        block, row = divmod(task, AT_A_TIME // self.n)
        if self._table[0] != block:
            rounds = np.arange(block * (AT_A_TIME // self.n), (block + 1) * (AT_A_TIME // self.n))
            every, each = np.tile(np.arange(self.n), len(rounds)), np.repeat(rounds, self.n)
            self._table[:] = block, self._drawn(every, each).reshape(len(rounds), self.n)
        factors: np.ndarray = self._table[1][row, ids]
        return factors

    def _drawn(self, ids: np.ndarray, task: int | np.ndarray) -> np.ndarray:
        variance = np.log1p(self.jitter**2)                # of the logarithm; the mean factor is 1
        normal = normal_quantile(seeds.uniform(self.seed, "jitter", task, ids))
        factors: np.ndarray = np.exp(np.sqrt(variance) * normal - variance / 2)
        return factors

    def download(self, ids: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Seconds ``[c]`` in which messages of ``size [c]`` bytes arrive that the server sends at once; 0 for none."""
        return np.where(size > 0, self._transfer(ids, size, self.down, self.server_up), 0.0)

    def upload(self, ids: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Seconds ``[c]`` in which messages of ``size [c]`` bytes reach the server that are sent at once."""
        return self._transfer(ids, size, self.up, self.server_down)

    def _transfer(self, ids: np.ndarray, size: np.ndarray, own: np.ndarray, server: float) -> np.ndarray:
        """Seconds ``[c]`` of messages of ``size [c]`` bytes under way at once: each has its client's line, of ``own
        [n]`` bytes per second, and shares those of its group and of the server.
        """
        seconds: np.ndarray = self.latency[ids] + np.maximum(size / own[ids], size.sum() / server)
        if self.groups is not None:
            group = self.groups[ids]
            shared = np.bincount(group, size)[group] / self.group_rate
            seconds = np.maximum(seconds, self.latency[ids] + shared) + self.group_latency
        return seconds

    def task(
        self, work: Computed, up: np.ndarray, tasks: np.ndarray, now: float, concurrency: int
    ) -> TaskSeconds:
        """Seconds until the messages of ``up [c]`` bytes arrive of clients that are called at ``now``, with the numbers
        of their own tasks; each of ``concurrency`` clients under way has the same part of the server's line.
        """
        i, delay = work.ids, self.latency[work.ids]
        group = np.zeros(len(i))                           # seconds for a byte on a group's line, as for the server's
        if self.groups is not None:
            delay = delay + self.group_latency
            group = np.maximum(1, np.bincount(self.groups)[self.groups[i]] * concurrency / self.n) / self.group_rate
        download = delay + work.down * np.maximum.reduce(
            [1 / self.down[i], np.full(len(i), concurrency / self.server_up), group]
        )
        begin = download = np.where(work.down > 0, download, 0.0)
        if self.windows is not None:                       # otherwise exactly the same seconds at any time
            begin = self.begin(i, now + begin) - now
        upload = delay + up * np.maximum.reduce(
            [1 / self.up[i], np.full(len(i), concurrency / self.server_down), group]
        )
        return TaskSeconds(download, begin, self.work(i, work.evaluations, tasks), upload)

    def link(self, to: np.ndarray, by: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Seconds ``[E]`` over each edge: a node's line is shared by all that it sends, and by all that it receives."""
        sent, received = (np.bincount(ends, size, self.n) for ends in (by, to))
        slower = np.maximum(sent[by] / self.up[by], received[to] / self.down[to])
        delay = self.latency[by] + self.latency[to]
        if self.groups is not None:
            from_group, to_group = self.groups[by], self.groups[to]
            away = from_group != to_group
            for ends in (from_group, to_group):
                line = np.bincount(ends, size * away)[ends] / self.group_rate
                slower = np.maximum(slower, np.where(away, line, 0.0))
            delay = delay + 2 * self.group_latency * away
        seconds: np.ndarray = delay + slower
        return seconds

    def pair(self, i: np.ndarray, j: np.ndarray, size: int) -> np.ndarray:
        """Seconds ``[c]`` in which nodes ``i [c]`` and ``j [c]`` exchange messages of ``size`` bytes."""
        slowest, delay = np.minimum.reduce([self.up[i], self.down[j], self.up[j], self.down[i]]), 0.0
        if self.groups is not None:
            away = self.groups[i] != self.groups[j]
            slowest = np.where(away, np.minimum(slowest, self.group_rate), slowest)
            delay = 2 * self.group_latency * away
        seconds: np.ndarray = self.latency[i] + self.latency[j] + delay + size / slowest
        return seconds

    def begin(self, ids: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The first times from ``times [c]`` on at which clients are available."""
        if self.windows is None:
            return times
        begin = self.windows.begin
        return np.array([begin(i, t) for i, t in zip(ids.tolist(), times.tolist(), strict=True)])

    def leave(self, ids: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Times ``[c]`` at which clients go away that are available at ``times``; inf for those that stay."""
        if self.windows is None:
            return np.full(len(ids), np.inf)
        end = self.windows.end
        return np.array([end(i, t) for i, t in zip(ids.tolist(), times.tolist(), strict=True)])

    def to_bytes(self) -> bytes:
        """The devices as an npz file."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays["rest"] = np.array([self.jitter, self.server_down, self.server_up, self.seed])
        if self.groups is not None:
            arrays["groups"], arrays["group_line"] = self.groups, np.array([self.group_rate, self.group_latency])
        if self.windows is not None:
            arrays["windows"] = np.concatenate(self.windows.windows)
            arrays["counts"] = np.array([len(own) for own in self.windows.windows])
            arrays["periods"] = self.windows.periods
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()


def check_time(seconds: float, step: int) -> None:
    """Require the simulated time at which a round or server step ends to be one that can be counted.

    Raises:
        ConfigError: it is above `LONGEST`, or not finite.
    """
    if not seconds <= LONGEST:
        raise ConfigError(
            f"clock: round {step} ends after {seconds:g} simulated seconds; expected at most {LONGEST:g} (285 years);"
            " check clock.seconds (of one gradient evaluation), clock.bandwidth_down and bandwidth_up (bit/s)"
        )


def read_devices(path: Path) -> Devices:
    """Read the devices that `Devices.to_bytes` wrote.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        jitter, server_down, server_up, seed = arrays["rest"].tolist()
        windows = None
        if "windows" in arrays:
            parts = np.split(arrays["windows"], np.cumsum(arrays["counts"])[:-1])
            windows = Windows(parts, arrays["periods"])
        own: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
        if "groups" in arrays:
            rate, latency = arrays["group_line"].tolist()
            own |= {"groups": arrays["groups"], "group_rate": rate, "group_latency": latency}
        return Devices(
            **own, jitter=jitter, server_down=server_down, server_up=server_up, windows=windows, seed=int(seed)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, ConfigError) as error:
        raise RunError(f"{path} does not hold the devices of a run ({error}); restore it, or repeat the run") from error
