"""Metrics of a run for other tools, afterwards or while it is under way.

A sink takes rows that belong to no client, by round, under names such as ``server/test/accuracy``. They come from the
files of the run, so that it changes nothing of a result, and can begin again at any time.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from fedsim.errors import ConfigError, RunError, in_one_line
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import Metrics, read_after, read_metrics

SINKS = {
    "tensorboard": "event files of TensorBoard, a folder for each seed",
    "wandb": "runs of Weights & Biases, offline unless WANDB_MODE says otherwise",
    "trackio": "a project of trackio, a local dashboard",
}
"""Tools, each with a module of its name here, and an extra."""
SHARED = ("trackio",)
"""Tools that keep all runs in one file."""
POLL_SECONDS = 1.0


class Sink(Protocol):
    """The place of one run in a tool."""

    def write(self, seed: int, values: Mapping[int, Mapping[str, float]], seconds: Mapping[int, float]) -> None:
        """Take what a seed measured since the last call.

        Args:
            values: by round, in order, and name.
            seconds: host seconds by round.
        """

    def close(self) -> None:
        """Complete what was written."""

    def see(self) -> str:
        """Command that shows it."""


def maker(tool: str) -> Callable[[RunDirectory, Path | None], Sink]:
    """Function that opens a tool's sink of a run in a folder, of which None is the tool's own.

    Raises:
        ConfigError: the tool is not installed.
    """
    make: Callable[[RunDirectory, Path | None], Sink] = import_module(f"fedsim.record.sinks.{tool}").open_sink
    return make


def write_metrics(run: RunDirectory, tool: str, root: Path) -> tuple[Path, str]:
    """Write what a run has measured below a folder; return where, and the command that shows it.

    Raises:
        ConfigError: it exists, or the tool is not installed.
        RunError: the run measured nothing.
        OSError: it cannot be written; of tools with a folder for each run, it is then not there.
    """
    make, target = maker(tool), _target(run, tool, root)
    folder = target if tool in SHARED else root / f".{target.name}-{uuid.uuid4().hex}.tmp"
    try:
        sink = make(run, folder)
        with contextlib.closing(sink):
            Follower(run, sink).catch_up()
        if folder != target:
            folder.rename(target)
    finally:
        if folder != target:
            shutil.rmtree(folder, ignore_errors=True)
    return target, sink.see().replace(str(folder), str(target))


def follow_metrics(run: RunDirectory, tool: str, root: Path, every: float = POLL_SECONDS) -> tuple[Path, str]:
    """Do as `write_metrics` while the run is under way, and return when no seed waits or runs.

    Args:
        every: seconds between looks.

    Raises:
        ConfigError, RunError, OSError: see `write_metrics`; what was written before stays.
    """
    make, target = maker(tool), _target(run, tool, root)
    sink = make(run, target)
    with contextlib.closing(sink):
        follower = Follower(run, sink)
        while True:
            # looked up before the rows, so that none comes after the last look
            going = any(seed["state"] in ("waiting", "running") for seed in run.manifest["status"].values())
            follower.catch_up(going)
            if not going:
                break
            time.sleep(every)
    return target, sink.see()


def _target(run: RunDirectory, tool: str, root: Path) -> Path:
    target = root if tool in SHARED else root / run.path.resolve().name
    if target.exists() and tool not in SHARED:
        raise ConfigError(f"{target} exists; choose another folder, or remove it first")
    return target


class Follower:
    """Gives a sink what the seeds of a run have measured."""

    def __init__(self, run: RunDirectory, sink: Sink) -> None:
        self.run, self.sink = run, sink
        self._read: dict[int, int] = {}                    # bytes of metrics.jsonl, by seed

    def catch_up(self, going: bool = False, only: int | None = None) -> None:
        """Pass on what was measured since the last call.

        A resumed run first repeats the bytes of its metrics that were cut off, so that new are those that follow them.

        Args:
            going: more may come.
            only: a seed, to pass on no other's.

        Raises:
            RunError: the run has ended and measured nothing.
        """
        for seed in map(int, self.run.manifest["status"]):
            source = self.run.seed_path(seed)
            if only not in (None, seed) or not (source / "timing.jsonl").exists():     # the last file made
                continue
            rows, end = read_after(source / "metrics.jsonl", self._read.get(seed, 0))
            if not (values := _by_round(rows)):
                continue
            seconds = read_metrics(source / "timing.jsonl").series("host", "seconds")
            if going and not values.keys() <= seconds.keys():
                continue                                   # the timing of a round is written after its metrics
            self._read[seed] = end
            self.sink.write(seed, values, seconds)
        if not going and not self._read:
            raise RunError(f"{self.run.path} measured nothing yet; continue it with fedsim resume {self.run.path}")


def _by_round(rows: Metrics) -> dict[int, dict[str, float]]:
    """Values of rows that belong to no client, by round and name; later rows replace earlier ones."""
    values: dict[int, dict[str, float]] = {}
    for row in np.flatnonzero(rows.node == -1):
        values.setdefault(int(rows.round[row]), {})[f"{rows.scope[row]}/{rows.metric[row]}"] = float(rows.value[row])
    return values


class LiveSinks:
    """Sinks of a run in progress, each from its beginning; one that fails is left out, with one message."""

    def __init__(self, run: RunDirectory, tools: Sequence[str], say: Callable[[str], None]) -> None:
        self.run, self.say = run, say
        self._waiting = list(tools)                        # to be opened with the first rows
        self._followers: dict[str, Follower] = {}

    def catch_up(self, seed: int | None) -> None:
        """Pass on what a seed, or every seed, has measured since the last call."""
        for tool in self._waiting:
            with self._alone(tool):
                folder = self.run.path / tool
                shutil.rmtree(folder, ignore_errors=True)  # of the part of the run before a resume
                sink = maker(tool)(self.run, None if tool in SHARED else folder)
                self._followers[tool] = Follower(self.run, sink)
                self.say(f"sink {tool}: see it with {sink.see()}")
        self._waiting.clear()
        for tool, follower in list(self._followers.items()):
            with self._alone(tool):
                follower.catch_up(going=True, only=seed)

    def close(self) -> None:
        """Pass on what seeds had measured that did not run, and complete what was written."""
        if self._followers:
            self.catch_up(None)
        for tool, follower in list(self._followers.items()):
            with self._alone(tool):
                follower.sink.close()

    @contextlib.contextmanager
    def _alone(self, tool: str) -> Iterator[None]:
        """Keep a failure from the run."""
        try:
            yield
        except Exception as error:
            if follower := self._followers.pop(tool, None):
                with contextlib.suppress(Exception):
                    follower.sink.close()
            self.say(
                f"sink {tool} failed, and the run goes on without it ({in_one_line(error)}); afterwards: fedsim export"
                f" {self.run.path} --to {tool} DIR"
            )
