"""Sweeps: a grid of experiments in one folder, each a run of its own.

    NAME/sweep.json       the points with their resolved experiments, threads for each; why points failed
    NAME/lr=0.03/         a run directory for each point (`fedsim.record.directory`)

What has become of a point is what its run directory says, so that a sweep goes on after any interruption: finished
points are left alone, the others continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedsim.errors import ConfigError, RunError
from fedsim.experiment.short_forms import in_full
from fedsim.record.directory import environment, open_run
from fedsim.record.files import create_folder, lock, write_atomic
from fedsim.record.metrics import read_metrics
from fedsim.report.compare import Comparison, RunSummary, compare
from fedsim.report.statistics import Estimate, best, estimate

FILE = "sweep.json"
LONGEST_NAME = 100

PointState = Literal["waiting", "unfinished", "finished", "failed"]


class Point(NamedTuple):
    """One experiment of a sweep.

    Attributes:
        name: what distinguishes it, as ``lr=0.03``; its directory below the sweep.
        config: the resolved experiment, as plain values.
    """

    name: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk.

    Attributes:
        path: its folder.
        points: in the order of the grid.
    """

    path: Path
    points: tuple[Point, ...]

    def state(self, point: Point) -> PointState:
        """What has become of a point."""
        if not self.directory(point).is_dir():
            return "failed" if point.name in self.failures else "waiting"
        states = {status["state"] for status in open_run(self.directory(point)).manifest["status"].values()}
        return "finished" if states == {"finished"} else "failed" if "failed" in states else "unfinished"

    def directory(self, point: Point) -> Path:
        """The run directory of a point."""
        return self.path / point.name

    def done(self) -> tuple[int, int]:
        """Evaluated rounds so far, and all rounds of all points and seeds; a failed point counts as done."""
        failures, done, total = self.failures, 0, 0
        for point in self.points:
            rounds = point.config["rounds"] * point.config["seeds"]
            with contextlib.suppress(RunError):            # its run is just being removed, as it cannot be run
                done += rounds if point.name in failures else self._rounds_done(point)
            total += rounds
        return done, total

    def _rounds_done(self, point: Point) -> int:
        if not self.directory(point).is_dir():
            return 0
        run, done = open_run(self.directory(point)), 0
        for seed, status in run.manifest["status"].items():
            finished = status["state"] == "finished"
            done += point.config["rounds"] if finished else _last_round(run.seed_path(int(seed)) / "metrics.jsonl")
        return done

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, points, threads and failures, as last written."""
        return _read(self.path)

    @property
    def failures(self) -> dict[str, str]:
        """Why points failed, by their names."""
        failures: dict[str, str] = self.manifest["failures"]
        return failures

    def threads(self, proposed: int) -> int:
        """Threads of PyTorch for a point: those ``proposed`` when the sweep first ran, as numbers depend on them."""
        content = _read(self.path)
        threads: int = content.setdefault("threads", proposed)
        _write(self.path, content)
        return threads

    def note(self, point: Point, failure: str | None) -> None:
        """Remember that a point has failed, or has not."""
        content = _read(self.path)
        if failure is None:
            content["failures"].pop(point.name, None)
        else:
            content["failures"][point.name] = failure
        _write(self.path, content)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from running it.

        Raises:
            BusyError: another process does.
        """
        return lock(self.path, f"{self.path} is being run by another process; wait for it, or stop it first")


def grid(axes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every combination of the values of settings: its name, and the value of each setting."""
    last = [key.rsplit(".", 1)[-1] for key in axes]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(axes, last, strict=True)}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = re.sub(r"[\s/]+", "_", ",".join(f"{short[key]}={value}" for key, value in chosen.items()))
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        yield name, chosen


def start(points: Sequence[Point], *, output: Path | None = None, root: Path = Path("runs"), name: str) -> Sweep:
    """The sweep of these points: the same one that was begun earlier, or a new one.

    Args:
        points: with different names.
        output: exactly this folder; by default ``root/name``, or with a number where other sweeps have that name.
        root: folder of sweeps.
        name: of the folder.

    Raises:
        ConfigError: ``output`` holds something else.
        RunError: the disk refuses.
    """
    for known in [output] if output else sorted(root.glob(f"{name}*")):
        if (known / FILE).is_file() and (sweep := open_sweep(known)).points == tuple(points):
            return sweep
    if output and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not this sweep; choose another --output, or remove it first")
    folder = output or create_folder(root, name)
    listed = [{"name": point.name, "config": point.config} for point in points]
    _write(folder, {**environment(), "points": listed, "failures": {}})
    return open_sweep(folder)


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (path / FILE).is_file()


def open_sweep(path: Path) -> Sweep:
    """Open an existing sweep.

    Raises:
        RunError: it is none.
    """
    return Sweep(path, tuple(Point(point["name"], in_full(point["config"])) for point in _read(path)["points"]))


class Choice(NamedTuple):
    """The best point of a sweep.

    Attributes:
        run: its final values over seeds.
        cost: what the whole run cost, by `fedsim.report.compare.COSTS`.
    """

    run: RunSummary
    cost: dict[str, Estimate]


def compare_points(sweep: Sweep, scope: str, metric: str | None, target: float | None) -> Comparison | None:
    """The finished points side by side, the baseline being the best one; None where none has finished.

    Args:
        sweep: what was run.
        scope: which model on which data.
        metric: by default accuracy, or loss where that was not measured.
        target: see `fedsim.report.compare.compare`.
    """
    finished = [sweep.directory(point) for point in sweep.points if sweep.state(point) == "finished"]
    if not finished:
        return None
    if metric is None:
        files = [next(path.glob("seed-*/metrics.jsonl")) for path in finished]
        metric = "accuracy" if all("accuracy" in read_metrics(file).metric for file in files) else "loss"
    return compare(finished, scope, metric, target, baseline="best")


def choose(comparison: Comparison) -> Choice | None:
    """The point with the best mean final value over its seeds; None where every point diverged."""
    winner = best([summary.final.mean for summary in comparison.runs], comparison.metric)
    if isnan(winner):
        return None
    summary = next(summary for summary in comparison.runs if summary.final.mean == winner)
    seeds = summary.run.seeds.values()
    names = ("round", "megabytes", "gradient_evaluations", "seconds")
    return Choice(summary, {name: estimate([float(series.cost[name][-1]) for series in seeds]) for name in names})


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((path / FILE).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not a sweep: {FILE}: {error}; expected a folder made by `fedsim sweep`") from error
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path / FILE}: {error.strerror}; free some space, then resume") from error


def _last_round(metrics: Path) -> int:
    """Round of the last complete row of a metrics file that is being written; 0 where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["round"])
    except (OSError, IndexError, ValueError):
        return 0
