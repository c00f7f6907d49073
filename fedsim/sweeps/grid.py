"""Sweeps: a grid of experiments in one folder, each a run of its own.

    NAME/sweep.json       points with their resolved experiments, threads per point, errors of failed points
    NAME/lr=0.03/         a run directory for each point (`fedsim.record.directory`)

The state of a point is that of its run directory, so a sweep can resume after any interruption: finished points are
not run again, and others continue from their checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fedsim.errors import ConfigError, MissingRunError, RunError
from fedsim.experiment.code import current
from fedsim.experiment.config import from_config
from fedsim.experiment.short_forms import in_full
from fedsim.record.directory import SWEEP, open_run
from fedsim.record.environment import environment
from fedsim.record.files import create_folder, lock, read_mapping, write_atomic
from fedsim.record.metrics import read_metrics
from fedsim.record.places import refusal
from fedsim.report.compare import Comparison, RunSummary, compare, costs_of
from fedsim.report.statistics import Estimate, best, estimate

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Experiment

LONGEST_NAME = 100

PointState = Literal["waiting", "unfinished", "finished", "failed"]


class Point(NamedTuple):
    """One experiment of a sweep.

    Attributes:
        name: the settings that distinguish it, such as ``lr=0.03``; also the name of its run directory.
        config: the resolved experiment, as plain values.
    """

    name: str
    config: dict[str, Any]


MOST_PARSED = 10_000
_PARSED: dict[str, Experiment] = {}


def experiment_of(config: Mapping[str, Any], made: Experiment | None = None) -> Experiment:
    """The experiment of a point, parsed once in a process, and again if its code was reloaded.

    Args:
        config: the resolved experiment.
        made: the experiment itself, if the caller has it.
    """
    text = json.dumps(config, sort_keys=True, default=str)
    if text not in _PARSED or not current(_PARSED[text]):
        if len(_PARSED) >= MOST_PARSED:
            _PARSED.clear()
        _PARSED[text] = made or from_config(config)
    return _PARSED[text]


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk.

    Attributes:
        path: its folder.
        points: in the order of the grid.
    """

    path: Path
    points: tuple[Point, ...]

    def state(self, point: Point, failures: Mapping[str, str] | None = None) -> PointState:
        """State of a point; ``failures`` are those of the sweep, if they have been read already."""
        if not self.directory(point).is_dir():
            failed = point.name in (self.failures if failures is None else failures)
            return "failed" if failed else "waiting"
        seeds = open_run(self.directory(point)).manifest["status"]
        states = {status["state"] for status in seeds.values()}
        if states == {"finished"} and len(seeds) < point.config["seeds"]:
            return "unfinished"                            # it was begun with fewer
        return "finished" if states == {"finished"} else "failed" if "failed" in states else "unfinished"

    def states(self) -> dict[str, PointState]:
        """State of every point, by name."""
        failures = self.failures
        return {point.name: self.state(point, failures) for point in self.points}

    def directory(self, point: Point) -> Path:
        """The run directory of a point."""
        return self.path / point.name

    def done(self, ended: Collection[str] = ()) -> tuple[int, int]:
        """Evaluated and total rounds over all points and seeds; the points ``ended``, by name, count as done."""
        done, total = 0, 0
        for point in self.points:
            rounds = point.config["rounds"] * point.config["seeds"]
            with contextlib.suppress(RunError):            # its directory is being removed after an error
                done += rounds if point.name in ended else self._rounds_done(point)
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
        """Errors of failed points, by name."""
        failures: dict[str, str] = self.manifest["failures"]
        return failures

    def threads(self, proposed: int) -> int:
        """PyTorch threads per point: the number ``proposed`` on the first call, as results depend on it."""
        content = _read(self.path)
        threads: int = content.setdefault("threads", proposed)
        _write(self.path, content)
        return threads

    def note(self, point: Point, failure: str | None) -> None:
        """Record the error of a point, or clear it."""
        content = _read(self.path)
        if content["failures"].get(point.name) == failure:
            return                                         # nothing to write, as for most points of a large sweep
        if failure is None:
            content["failures"].pop(point.name, None)
        else:
            content["failures"][point.name] = failure
        _write(self.path, content)

    def with_points(self, points: Sequence[Point]) -> Sweep:
        """The sweep with these points instead; failures of points that had other settings are forgotten."""
        content, before = _read(self.path), {point.name: point for point in self.points}
        same = {point.name for point in points if before.get(point.name) == point}
        failures = {name: failure for name, failure in content["failures"].items() if name in same}
        _write(self.path, {**content, "points": _listed(points), "failures": failures})
        return open_sweep(self.path)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Exclude other processes from running the sweep.

        Raises:
            BusyError: another process is running it.
        """
        return lock(self.path, f"{self.path} is being run by another process; wait for it, or stop it first")


def grid(axes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each combination of values: its name, and the value of each setting."""
    last = [key.rsplit(".", 1)[-1] for key in axes]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(axes, last, strict=True)}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = re.sub(r"[\s/]+", "_", ",".join(f"{short[key]}={value}" for key, value in chosen.items()))
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        yield name, chosen


def start(points: Sequence[Point], *, output: Path | None = None, root: Path = Path("runs"), name: str) -> Sweep:
    """Open the sweep of these points if it exists, or create it.

    Args:
        points: points with distinct names.
        output: its folder, in which a sweep of some of these points, or with fewer seeds, is extended; by default
            ``root/name``, with a number if other sweeps have that name.
        root: folder of sweeps.
        name: name of the folder.

    Raises:
        ConfigError: ``output`` holds something else.
        RunError: the folder cannot be written.
    """
    for known in [output] if output else sorted(root.glob(f"{name}*")):
        if not is_sweep(known):
            continue
        sweep, by_name = open_sweep(known), {point.name: point for point in points}
        if sweep.points == tuple(points):
            return sweep
        if output and all(point.name in by_name and grows(point, by_name[point.name]) for point in sweep.points):
            with sweep.lock():
                return sweep.with_points(points)
    if output and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not this sweep; choose another --output, or remove it first")
    folder = output or create_folder(root, name)
    _write(folder, {**environment(), "points": _listed(points), "failures": {}})
    return open_sweep(folder)


def grows(old: Point, new: Point) -> bool:
    """Whether a point is what it was, with as many seeds or more."""
    seeds = new.config["seeds"]
    return seeds >= old.config["seeds"] and new.config == {**old.config, "seeds": seeds}


def _listed(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [{"name": point.name, "config": point.config} for point in points]


def is_sweep(path: Path) -> bool:
    """True if a folder holds a sweep."""
    return (path / SWEEP).is_file()


def open_sweep(path: Path) -> Sweep:
    """Open an existing sweep.

    Raises:
        RunError: the folder holds no sweep.
    """
    return Sweep(path, tuple(Point(point["name"], in_full(point["config"])) for point in _read(path)["points"]))


class Choice(NamedTuple):
    """The best point of a sweep.

    Attributes:
        run: its values over seeds.
        cost: its total costs, by `fedsim.report.compare.COSTS`.
    """

    run: RunSummary
    cost: dict[str, Estimate]


def compare_points(sweep: Sweep, scope: str, metric: str | None, target: float | None) -> Comparison | None:
    """Compare the finished points with the best one; None if none has finished.

    Args:
        sweep: the sweep.
        scope: model and samples of the metric.
        metric: the metric; by default accuracy, or loss if accuracy was not measured.
        target: see `fedsim.report.compare.compare`.
    """
    states = sweep.states()
    finished = [sweep.directory(point) for point in sweep.points if states[point.name] == "finished"]
    if not finished:
        return None
    if metric is None:
        files = [next(path.glob("seed-*/metrics.jsonl")) for path in finished]
        metric = "accuracy" if all("accuracy" in read_metrics(file).metric for file in files) else "loss"
    return compare(finished, scope, metric, target, baseline="best")


def choose(comparison: Comparison) -> Choice | None:
    """The point with the best mean final value over its seeds; None if that is undefined for every point."""
    winner = best([summary.final.mean for summary in comparison.runs], comparison.lower)
    if isnan(winner):
        return None
    summary = next(summary for summary in comparison.runs if summary.final.mean == winner)
    seeds = summary.run.seeds.values()
    names = (*costs_of(comparison), "seconds")
    return Choice(summary, {name: estimate([float(series.cost[name][-1]) for series in seeds]) for name in names})


def _read(path: Path) -> dict[str, Any]:
    if not is_sweep(path):
        raise MissingRunError(f"{path} is not a sweep: {SWEEP} is missing; expected a folder made by `fedsim sweep`")
    return read_mapping(path / SWEEP, json.loads, ("points", "failures", "versions"))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / SWEEP, json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        fix = "free some space, then resume" if is_sweep(path) else "choose another folder"
        raise refusal(path / SWEEP, error, fix) from error


def _last_round(metrics: Path) -> int:
    """Round of the last complete row of a metrics file that is being written; 0 if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["round"])
    except (OSError, IndexError, ValueError):
        return 0
