"""Progress of a run: a bar with rate, remaining time, accuracy and bytes on a terminal, or else occasional lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedsim.errors import in_bytes

QUIET_SECONDS = 10.0
"""Seconds between lines if stderr is not a terminal."""


class RunProgress:
    """Progress of the seeds of one run, on stderr.

    Args:
        title: name of the run.
        rounds: rounds of each seed.
        shown: False to print nothing.
    """

    def __init__(self, title: str, rounds: int, shown: bool = True) -> None:
        self.title, self.rounds, self.shown = title, rounds, shown
        self._console = Console(file=sys.stderr, quiet=not shown)
        self._live = shown and self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"), console=self._console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._seed, self._metrics, self._start, self._first, self._printed = 0, "", 0.0, 0, 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, seed: int, round: int) -> None:
        """Begin or resume a seed after ``round`` rounds."""
        self._seed, self._first, self._metrics = seed, round, ""
        self._start = self._printed = time.monotonic()
        label = f"{self.title} seed {seed}"
        self._task = self._bar.add_task(label, total=self.rounds, completed=round, rate="", metrics="")

    def update(
        self, round: int, accuracy: float | None = None, loss: float | None = None, sent: float = 0.0
    ) -> None:
        """Show that ``round`` is complete, the latest metrics, and the bytes sent by then."""
        if accuracy is not None or loss is not None:
            value = f"accuracy {accuracy:.3f}" if accuracy is not None else f"loss {loss:.4g}"
            self._metrics = f"{value}  {in_bytes(sent)}"
        seconds = time.monotonic() - self._start
        rate = f"{(round - self._first) / seconds:.1f} rounds/s" if seconds > 0 else ""
        if self._task is not None:
            self._bar.update(self._task, completed=round, rate=rate, metrics=self._metrics)
        last = round == self.rounds
        if self.shown and not self._live and (last or time.monotonic() - self._printed > QUIET_SECONDS):
            self._printed = time.monotonic()
            line = f"{self.title} seed {self._seed}: round {round}/{self.rounds}  {rate}  {self._metrics}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
