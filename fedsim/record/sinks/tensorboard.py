"""Metrics of a run as event files of TensorBoard; needs the extra ``tensorboard``.

TensorBoard keeps scalars in float32. Wall times are those of the run, its creation plus its host seconds, so that the
same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from fedsim.errors import ConfigError, how_to_install
from fedsim.record.directory import RunDirectory

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError as error:
    raise ConfigError(f"event files need TensorBoard ({error}); {how_to_install('tensorboard')}") from error


class EventFiles:
    """The event files of a run in a folder, one a seed; see ``fedsim.record.sinks.sink.Sink``."""

    def __init__(self, run: RunDirectory, folder: Path) -> None:
        self.folder = folder
        self._created = datetime.fromisoformat(run.manifest["created"]).timestamp()
        self._files: dict[int, BinaryIO] = {}
        self._open = ExitStack()

    def write(self, seed: int, values: Mapping[int, Mapping[str, float]], seconds: Mapping[int, float]) -> None:
        """Write one event for each round. TensorBoard's EventFileWriter would lose errors in its thread."""
        events = []
        if seed not in self._files:
            path = self.folder / f"seed-{seed}" / f"events.out.tfevents.{self._created:.0f}.fedsim"
            path.parent.mkdir(parents=True)
            self._files[seed] = self._open.enter_context(path.open("wb"))
            events.append(Event(wall_time=self._created, file_version="brain.Event:2"))
        for round, measured in values.items():
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in measured.items()]
            when = self._created + seconds.get(round, 0.0)
            events.append(Event(step=round, wall_time=when, summary=Summary(value=scalars)))
        writer = RecordWriter(self._files[seed])
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()

    def close(self) -> None:
        """See ``Sink``."""
        self._open.close()

    def see(self) -> str:
        """See ``Sink``."""
        return f"tensorboard --logdir {self.folder.parent}"


def open_sink(run: RunDirectory, folder: Path | None) -> EventFiles:
    """See ``fedsim.record.sinks.sink.maker``."""
    assert folder is not None
    return EventFiles(run, folder)
