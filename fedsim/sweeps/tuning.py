"""Methods at their best: the settings of each are chosen, and then measured on seeds that the choice has not seen.

    NAME/tuning/     a sweep of every setting of every method, on samples that clients withhold and seeds of its own
    NAME/final/      a sweep of the chosen ones, as the experiments say

Both sweeps continue where they were interrupted. Settings that diverge are out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedsim.checks import plain_name, whole
from fedsim.errors import ConfigError, DivergenceError, suggest
from fedsim.experiment.config import to_config
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.stopping import lower_is_better
from fedsim.report.series import load_runs
from fedsim.report.statistics import Estimate, best, estimate
from fedsim.sweeps.grid import Point, Sweep, is_sweep, start
from fedsim.sweeps.jobs import run_sweep

WITHHELD = 0.2
"""Share of every client's samples that settings are chosen on."""
APART = 1000
"""First seed of the choice, after the first one of the experiment."""


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and measured.

    Attributes:
        tuning: sweep of all settings; None where no method has several.
        final: sweep of the chosen ones, with a point for each method.
        chosen: setting of each method.
        withheld: for each method and setting the metric on withheld samples; NaN where a seed diverged.
        metric: that was chosen by.
    """

    tuning: Sweep | None
    final: Sweep
    chosen: Mapping[str, str]
    withheld: Mapping[str, Mapping[str, Estimate]]
    metric: str

    @property
    def paths(self) -> list[Path]:
        """Run directories of the chosen ones, in the order of the methods; those that diverged have none."""
        return [path for point in self.final.points if (path := self.final.directory(point)).is_dir()]


def tune(
    methods: Mapping[str, Mapping[str, Experiment]],
    folder: Path | str,
    *,
    seeds: int = 2,
    seed: int | None = None,
    metric: str = "accuracy",
    jobs: int | None = None,
    progress: bool = True,
) -> Tuned:
    """Choose the setting of each method, run it, and return both; called again it continues.

    Args:
        methods: for each method experiments by the names of their settings, such as
            ``{"FedAvg": {"lr=0.1": Experiment(FedAvg(0.1)), "lr=0.3": ...}, ...}``.
        folder: of both sweeps.
        seeds: seeds of the choice.
        seed: the first of them; by default `APART` after the experiment's.
        metric: that chooses, weighted by samples: ``accuracy``, ``loss`` or a metric of the experiments.
        jobs: runs at a time; see `fedsim.sweep`.
        progress: show progress on stderr.

    Raises:
        ConfigError: no methods or settings, a wrong number of seeds, an experiment that no file can express, or the
            folder holds something else.
        DivergenceError: a method diverges with each of its settings.
    """
    whole("tuning seeds", seeds, 1)
    if not methods or not all(methods.values()):
        raise ConfigError("a method has no settings; expected one at least, as {'FedAvg': {'lr=0.1': Experiment(...)}}")
    larger: dict[str, bool] = {}
    for made in (made for grid in methods.values() for made in grid.values()):
        measures = {measure.name: measure.larger_is_better for measure in made.measures}
        if metric not in (known := ["accuracy", "loss", *measures]):
            raise ConfigError(f"the metric to choose by is {metric!r}; {suggest(metric, known)}")
        larger |= measures
    for method in methods:
        plain_name(method)
    folder = Path(folder)
    ours = is_sweep(folder / "tuning") or is_sweep(folder / "final")
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds something else; choose another folder, or remove it first")
    trials = {
        method: {name: _point(f"{method},{name}", trial(made, seeds, seed)) for name, made in grid.items()}
        for method, grid in methods.items()
        if len(grid) > 1
    }
    points = [point for grid in trials.values() for point in grid.values()]
    chosen, withheld, tuning = {method: next(iter(grid)) for method, grid in methods.items()}, {}, None
    if points:
        tuning = run_all(points, folder / "tuning", jobs, progress)
        lower = lower_is_better(metric, larger)
        for method, grid in trials.items():
            scope = "clients/holdout" if methods[method][chosen[method]].topology is None else "nodes/holdout"
            values = {name: value_of(tuning, p, scope, f"{metric}_weighted_mean") for name, p in grid.items()}
            withheld[method], chosen[method] = values, _best(method, values, lower)
    finals = [_point(method, methods[method][name].with_execution(name=method)) for method, name in chosen.items()]
    return Tuned(tuning, run_all(finals, folder / "final", jobs, progress), chosen, withheld, metric)


def _point(name: str, made: Experiment) -> Point:
    return Point(name.replace(" ", ""), to_config(made))


def trial(made: Experiment, seeds: int, seed: int | None = None) -> Experiment:
    """An experiment as the choice runs it: on other seeds, evaluated once, on what clients withhold."""
    evaluation = replace(made.evaluation, every=made.rounds, clients_every=0, holdout=WITHHELD)
    return replace(made, seed=made.seed + APART if seed is None else seed, seeds=seeds, evaluation=evaluation)


def run_all(points: Sequence[Point], folder: Path, jobs: int | None, progress: bool) -> Sweep:
    """Run what is left of a sweep in exactly this folder.

    Raises:
        ConfigError: a point failed for another reason than that it diverged.
    """
    sweep = start(points, output=folder, name=folder.name)
    run_sweep(sweep, jobs, progress=progress)
    for name, reason in sweep.failures.items():
        if not reason.startswith(DivergenceError.__name__):
            raise ConfigError(f"{folder / name}: {reason}")
    return sweep


def value_of(sweep: Sweep, point: Point, scope: str, metric: str) -> Estimate:
    """Final value of a point over its seeds; NaN if one diverged."""
    if point.name in sweep.failures:
        return Estimate(math.nan, None, point.config["seeds"])
    (run,) = load_runs([sweep.directory(point)], scope, metric)
    return estimate([float(series.value[-1]) for series in run.seeds.values()])


def _best(method: str, values: Mapping[str, Estimate], lower: bool) -> str:
    winner = best([value.mean for value in values.values()], lower)
    if math.isnan(winner):
        raise DivergenceError(f"{method} diverges with every setting: {', '.join(values)}; give it smaller steps")
    return next(name for name, value in values.items() if value.mean == winner)
