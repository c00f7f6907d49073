"""Progress of a sweep: a bar of its points."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsim.controller.progress import QUIET_SECONDS
from fedsim.errors import many
from fedsim.sweeps.grid import Point, Sweep


class SweepProgress:
    """Progress of a sweep on stderr: a bar over the rounds of all points, and a line for every point that ends.

    Args:
        sweep: the sweep being run.
        todo: number of points that have not finished yet.
        jobs: number of concurrent runs; a single run has its own bar (`RunProgress`).
        shown: False to print nothing.
    """

    def __init__(self, sweep: Sweep, todo: int, jobs: int, shown: bool = True) -> None:
        self.sweep, self.todo, self.jobs, self.shown = sweep, todo, jobs, shown
        self._console = Console(file=sys.stderr, quiet=not shown)
        live = shown and jobs > 1 and self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
            console=self._console, disable=not live,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._over: set[str] = set()                       # points that need not be looked at again
        self._ended, self._before, self._start, self._printed = 0, 0, time.monotonic(), time.monotonic()

    def __enter__(self) -> Self:
        count, before = len(self.sweep.points), len(self.sweep.points) - self.todo
        self.say(f"{self.sweep.path}: {many(count, 'point')}, {before} finished, {self.jobs} at a time")
        states = self.sweep.states()
        self._over = {name for name, state in states.items() if state == "finished"} | set(self.sweep.failures)
        self._before, total = self.sweep.done(self._over)
        self._task = self._bar.add_task(self.sweep.path.name, total=total, completed=self._before)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begins(self, point: Point) -> None:
        """Report the start of a point in a sequential sweep."""
        self.say(f"[{self._ended + 1}/{self.todo}] {point.name}{self._eta()}")

    def ended(self, point: Point, failure: str | None) -> None:
        """Report that a point has finished or failed."""
        self._ended += 1
        self._over.add(point.name)
        how = f"failed: {failure.splitlines()[-1]}" if failure else "finished"
        self.say(f"[{self._ended}/{self.todo}] {point.name} {how}{self._eta()}")
        self.update()

    def update(self) -> None:
        """Refresh the bar from the files of the runs."""
        if self._task is not None and self.shown:
            self._bar.update(self._task, completed=self.sweep.done(self._over)[0])
            if self._bar.disable and time.monotonic() - self._printed > QUIET_SECONDS:
                self.say(f"{self.sweep.path.name}: {self._ended} of {many(self.todo, 'point')}{self._eta()}")

    def _eta(self) -> str:
        """Percentage of completed rounds, and remaining time at the current rate."""
        done, total = self.sweep.done(self._over)
        left = round((total - done) * (time.monotonic() - self._start) / max(1, done - self._before))
        remaining = f", eta {timedelta(seconds=left)}" if done > self._before else ""
        return f"  ({100 * done // max(1, total)} % of all rounds{remaining})"

    def say(self, text: str) -> None:
        """Print a line."""
        self._printed = time.monotonic()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
