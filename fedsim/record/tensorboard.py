"""Metrics of a run as event files of TensorBoard; needs the extra ``tensorboard``.

A row that belongs to no client becomes a scalar at its round, such as ``server/test/accuracy``; those of single clients
are left out. TensorBoard keeps scalars in float32. Wall times are those of the run, its creation plus its host seconds,
so that the same run gives the same bytes.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedsim.errors import ConfigError, RunError, how_to_install
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import Metrics, read_after, read_metrics

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise ConfigError(f"event files need TensorBoard ({error}); {how_to_install('tensorboard')}") from error


POLL_SECONDS = 1.0


def write_events(run: RunDirectory, root: Path) -> Path:
    """Write the folder ``root/NAME`` of a run, with one for each seed that measured something, and return it.

    Raises:
        ConfigError: it exists.
        RunError: the run measured nothing.
        OSError: it cannot be written; then it is not there.
    """
    target = _new_folder(run, root)
    temporary = root / f".{target.name}-{uuid.uuid4().hex}.tmp"
    try:
        with _Events(run, temporary) as events:
            events.catch_up()
        _check_measured(run, temporary)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def follow_events(run: RunDirectory, root: Path, every: float = POLL_SECONDS) -> Path:
    """Write the folder of `write_events` while the run is under way, and return when no seed waits or runs.

    It reads the files of the run alone, so it cannot disturb it.

    Args:
        every: seconds between looks.

    Raises:
        ConfigError: the folder exists.
        RunError: the run ended and measured nothing.
        OSError: it cannot be written; what was written before stays.
    """
    target = _new_folder(run, root)
    with _Events(run, target) as events:
        while True:
            # looked up before the rows, so that none comes after the last look
            going = any(seed["state"] in ("waiting", "running") for seed in run.manifest["status"].values())
            events.catch_up(going)
            if not going:
                break
            time.sleep(every)
    _check_measured(run, target)
    return target


def _check_measured(run: RunDirectory, folder: Path) -> None:
    if not folder.exists():
        raise RunError(f"{run.path} measured nothing yet; continue it with fedsim resume {run.path}")


def _new_folder(run: RunDirectory, root: Path) -> Path:
    target = root / run.path.resolve().name
    if target.exists():
        raise ConfigError(f"{target} exists; choose another folder, or remove it first")
    return target


class _Events(ExitStack):
    """The event files of a run in a folder, one a seed, made when it has rows."""

    def __init__(self, run: RunDirectory, folder: Path) -> None:
        super().__init__()
        self.run = run
        self.folder = folder
        self._created = datetime.fromisoformat(run.manifest["created"]).timestamp()
        self._read: dict[str, int] = {}                    # bytes of metrics.jsonl, by seed
        self._files: dict[str, BinaryIO] = {}

    def catch_up(self, going: bool = False) -> None:
        """Write what the seeds have measured since the last call.

        A resumed run first repeats the bytes of its metrics that were cut off, so that new are those that follow them.
        """
        for seed in self.run.manifest["status"]:
            source = self.run.seed_path(int(seed))
            if not (source / "timing.jsonl").exists():     # the last file made
                continue
            rows, end = read_after(source / "metrics.jsonl", self._read.get(seed, 0))
            if not (values := _by_round(rows)):
                continue
            seconds = read_metrics(source / "timing.jsonl").series("host", "seconds")
            if going and not values.keys() <= seconds.keys():
                continue                                   # the timing of a round is written after its metrics
            self._read[seed] = end
            self._write(seed, values, seconds)

    def _write(self, seed: str, values: Mapping[int, Mapping[str, float]], seconds: Mapping[int, float]) -> None:
        """Write one event for each round. TensorBoard's EventFileWriter would lose errors in its thread."""
        events = []
        if seed not in self._files:
            path = self.folder / f"seed-{seed}" / f"events.out.tfevents.{self._created:.0f}.fedsim"
            path.parent.mkdir(parents=True)
            self._files[seed] = self.enter_context(path.open("wb"))
            events.append(Event(wall_time=self._created, file_version="brain.Event:2"))
        for round, measured in values.items():
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in measured.items()]
            when = self._created + seconds.get(round, 0.0)
            events.append(Event(step=round, wall_time=when, summary=Summary(value=scalars)))
        writer = RecordWriter(self._files[seed])
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


def _by_round(rows: Metrics) -> dict[int, dict[str, float]]:
    """Values of rows that belong to no client, by round and tag; later rows replace earlier ones."""
    values: dict[int, dict[str, float]] = {}
    for row in np.flatnonzero(rows.node == -1):
        values.setdefault(int(rows.round[row]), {})[f"{rows.scope[row]}/{rows.metric[row]}"] = float(rows.value[row])
    return values
