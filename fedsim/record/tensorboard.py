"""Metrics of a run as event files of TensorBoard; needs the extra ``tensorboard``.

A row that belongs to no client becomes a scalar at its round, such as ``server/test/accuracy``; those of single clients
are left out. TensorBoard keeps scalars in float32. Wall times are those of the run, its creation plus its host seconds,
so that the same run gives the same bytes.
"""

from __future__ import annotations

import shutil
import uuid
from datetime import datetime
from pathlib import Path

import numpy as np

from fedsim.errors import ConfigError, RunError, how_to_install
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import read_metrics

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise ConfigError(f"event files need TensorBoard ({error}); {how_to_install('tensorboard')}") from error


def write_events(run: RunDirectory, root: Path) -> Path:
    """Write the folder ``root/NAME`` of a run, with one for each seed that measured something, and return it.

    Raises:
        ConfigError: it exists.
        RunError: the run measured nothing.
        OSError: it cannot be written; then it is not there.
    """
    target = root / run.path.resolve().name
    if target.exists():
        raise ConfigError(f"{target} exists; choose another folder, or remove it first")
    folders = [run.seed_path(int(seed)) for seed in run.manifest["status"]]
    measured = [folder for folder in folders if (folder / "timing.jsonl").exists()]      # the last file made
    created = datetime.fromisoformat(run.manifest["created"]).timestamp()
    temporary = root / f".{target.name}-{uuid.uuid4().hex}.tmp"
    try:
        written = [_write_seed(folder, temporary / folder.name, created) for folder in measured]
        if not any(written):
            raise RunError(f"{run.path} measured nothing yet; continue it with fedsim resume {run.path}")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_seed(source: Path, folder: Path, created: float) -> bool:
    """Write one event for each measured round of a seed; False where there is none."""
    rows = read_metrics(source / "metrics.jsonl")
    seconds = read_metrics(source / "timing.jsonl").series("host", "seconds")
    shared = np.flatnonzero(rows.node == -1)
    values: dict[int, dict[str, float]] = {}
    for row in shared:
        tag = f"{rows.scope[row]}/{rows.metric[row]}"
        values.setdefault(int(rows.round[row]), {})[tag] = float(rows.value[row])     # later rows replace earlier
    if not values:
        return False
    events = [Event(wall_time=created, file_version="brain.Event:2")]
    for round, measured in values.items():
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in measured.items()]
        when = created + seconds.get(round, 0.0)
        events.append(Event(step=round, wall_time=when, summary=Summary(value=scalars)))
    folder.mkdir(parents=True)
    with (folder / f"events.out.tfevents.{created:.0f}.fedsim").open("wb") as file:
        writer = RecordWriter(file)                        # TensorBoard's EventFileWriter loses errors in its thread
        for event in events:
            writer.write(event.SerializeToString())
    return True
