"""Execution of a sweep's points: one after the other in this process, or concurrently in processes of their own."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from fedsim import api
from fedsim.checks import plain_name
from fedsim.controller.interrupt import terminate_as_interrupt
from fedsim.controller.notes import telling_once
from fedsim.engine.machine import check_count, cores, torch_threads
from fedsim.errors import ConfigError, FedsimError, RunError
from fedsim.experiment.config import build, to_config
from fedsim.experiment.config.names import Imports, only_from, restricted
from fedsim.experiment.execution import Execution
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import open_run
from fedsim.record.version import check_version
from fedsim.sweeps.grid import Point, Sweep, experiment_of, start
from fedsim.sweeps.stale import check_imported, reason, set_aside, stale
from fedsim.sweeps.sweep_progress import SweepProgress

Results: TypeAlias = Generator[tuple[Point, str | None], None, None]
"""Completed points, each with its error or None."""


class PointTask(NamedTuple):
    """Input of a process that runs a point.

    Attributes:
        path: its run directory.
        config: the resolved experiment.
        threads: PyTorch threads, unless the experiment sets them.
        imports: what its settings may import; None for anything.
        rounds: total number of rounds; None for the configuration's.
    """

    path: Path
    config: dict[str, Any]
    threads: int
    imports: Imports | None = None
    rounds: int | None = None


@telling_once()
def run_sweep(
    sweep: Sweep,
    jobs: int | None = None,
    *,
    progress: bool = True,
    rounds: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Run the unfinished and stale points of a sweep; return the errors of failed points, by name.

    Args:
        sweep: the sweep to run.
        jobs: number of concurrent runs; 1 runs in this process. By default one per CPU if Ray is installed, but 1 if
            experiments use Ray actors themselves.
        progress: show progress on stderr.
        rounds: names of the points to run, and their total numbers of rounds; by default all points, with the rounds of
            their configurations.

    Raises:
        ConfigError: concurrent runs each use Ray actors themselves, Ray is not installed, or this process has imported
            code that has changed since.
        KeyboardInterrupt: raised after all running points have written checkpoints.
    """
    with sweep.lock(), terminate_as_interrupt():
        points = [point for point in sweep.points if rounds is None or point.name in rounds]
        states = sweep.states()
        old = stale(sweep, [point for point in points if sweep.directory(point).is_dir()])
        todo = [p for p in points if states[p.name] != "finished" or p.name in old or _short(sweep, p, rounds)]
        jobs = jobs_of(jobs, todo)
        if todo:
            check_version(sweep.path, sweep.manifest)
        if jobs == 1:
            check_imported(old)
        for point in todo:
            if point.name in old:
                set_aside(sweep, point)
        threads = sweep.threads(torch.get_num_threads() if jobs == 1 else max(1, cores() // jobs))
        with SweepProgress(sweep, len(todo), jobs, progress) as bar:
            for name, modules in old.items():
                bar.say(f"{name} runs again: {reason(modules)}")
            tasks = [_task(sweep, point, threads, rounds) for point in todo]
            try:
                results = (
                    _one_by_one(todo, tasks, bar) if jobs == 1 else _pool(todo, tasks, jobs, threads, bar)
                )
                with contextlib.closing(results):          # stops running points cleanly
                    for point, failure in results:
                        sweep.note(point, failure)
                        bar.ended(point, failure)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"continue with: fedsim resume {sweep.path}") from None
    return sweep.failures


def sweep(
    points: Mapping[str, Experiment],
    *,
    output: Path | str | None = None,
    root: Path | str = Path("runs"),
    name: str = "sweep",
    jobs: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Run several experiments, each in a run directory of its own below one folder.

    Called again with the same points, it continues an interrupted sweep; with more points and the same ``output``, it
    runs the new ones. Finished points are not run again.

    Args:
        points: experiments by the names of their run directories, such as ``{"lr=0.1": Experiment(FedAvg(0.1)), ...}``.
        output: folder of the sweep; by default ``root/name``, with a number if other sweeps have that name.
        root: folder of sweeps.
        name: name of the folder.
        jobs: number of concurrent runs; see `run_sweep`.
        progress: show progress on stderr.

    Returns:
        The sweep; ``failures`` holds the reasons why points failed, by their names.

    Raises:
        ConfigError: there are no points, a name cannot be that of a folder, an experiment cannot be expressed in a file
            (as its model, data set or function is a Python object), or ``output`` holds something else.
        KeyboardInterrupt: after checkpoints of all running points.
    """
    example = "{'lr=0.1': Experiment(FedAvg(0.1))}"
    if not isinstance(points, Mapping) or not points:
        given = f"a {type(points).__name__}" if points else "no points"
        raise ConfigError(f"a sweep of {given}; expected experiments by name, such as {example}")
    made = []
    for title, experiment in points.items():
        plain_name(title)
        if not isinstance(experiment, Experiment):
            raise ConfigError(f"point {title} is {experiment!r:.200}; expected an Experiment, such as {example}")
        config = to_config(experiment)
        try:
            experiment_of(config)
        except ConfigError as error:
            raise ConfigError(
                f"the points of a sweep are run from their configuration, which cannot express {title}: {error};"
                " name the component as my_module.Class, or call fedsim.run for each point"
            ) from error
        made.append(Point(title, config))
    jobs_of(jobs, made)                                    # a wrong number leaves no folder behind
    begun = start(made, output=None if output is None else Path(output), root=Path(root), name=name)
    run_sweep(begun, jobs, progress=progress)
    return begun


def jobs_of(jobs: int | None, todo: list[Point]) -> int:
    """Resolve the number of concurrent runs; see `run_sweep`."""
    nested = any(_asks_for_ray(point) for point in todo)
    if jobs is None:
        jobs = 1 if nested or find_spec("ray") is None else cores()
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; expected 1 or more")
    several = min(jobs, len(todo))
    check_count("--jobs", several)
    if several > 1 and nested:
        raise ConfigError(
            f"--jobs is {jobs}, but experiments use Ray actors (backend ray, or a setting of ray), which occupy all"
            " CPUs themselves; use --jobs 1, or leave these settings out"
        )
    return max(1, several)


def _short(sweep: Sweep, point: Point, rounds: Mapping[str, int] | None) -> bool:
    """Whether a finished point is to have more rounds."""
    return rounds is not None and open_run(sweep.directory(point)).config["rounds"] < rounds[point.name]


def _task(sweep: Sweep, point: Point, threads: int, rounds: Mapping[str, int] | None) -> PointTask:
    more = None if rounds is None else rounds[point.name]
    return PointTask(sweep.directory(point).resolve(), point.config, threads, restricted(), more)


def _asks_for_ray(point: Point) -> bool:
    try:
        return build(Execution, point.config["execution"]).asks_for_ray
    except FedsimError:                                    # it fails when it runs, and ends no other
        return False


def _one_by_one(todo: list[Point], tasks: list[PointTask], bar: SweepProgress) -> Results:
    for point, task in zip(todo, tasks, strict=True):
        bar.begins(point)
        yield point, run_task(task, progress=bar.shown)


def _pool(todo: list[Point], tasks: list[PointTask], jobs: int, threads: int, bar: SweepProgress) -> Results:
    from fedsim.backends.ray.tasks import map_unordered  # the only code here that needs Ray

    by_path = {task.path: point for task, point in zip(tasks, todo, strict=True)}
    gpus = _gpus(todo, jobs)
    results = map_unordered(run_task, tasks, jobs=jobs, cpus=threads, gpus=gpus, tick=bar.update)
    with contextlib.closing(results):
        for task, result in results:
            yield by_path[task.path], str(result) if isinstance(result, RunError) else result


def _gpus(todo: list[Point], jobs: int) -> float:
    """Share of a GPU for each run: at most one GPU, as with several the run would start Ray itself."""
    if all(point.config["execution"]["device"] == "cpu" for point in todo):
        return 0
    count = torch.cuda.device_count()
    return count and 1 / math.ceil(jobs / count)


def run_task(task: PointTask, progress: bool = False) -> str | None:
    """Run or resume a point; return its error, or None."""
    try:
        with torch_threads(task.threads), only_from(task.imports):
            if task.path.is_dir():
                begun, seeds = open_run(task.path), task.config["seeds"]
                longer = task.rounds is not None and task.rounds > begun.config["rounds"]
                more = seeds if seeds > len(begun.manifest["status"]) else None
                api.resume(task.path, rounds=task.rounds if longer else None, seeds=more, progress=progress)
            else:
                api.run(experiment_of(task.config), output=task.path, progress=progress)
    except FedsimError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:                                      # a bug in one point's code does not end the others
        return traceback.format_exc().rstrip()
    return None
