"""Compare methods at their best: choose the settings of each, and run them on seeds that the choice has not seen.

    NAME/tuning/     a sweep of every setting of every method, measured on samples that clients withhold, on other seeds
    NAME/final/      a sweep of the chosen settings, as the experiments say

Both sweeps continue where they were interrupted. Settings that diverge are never chosen. `fedsim.sweeps.search` decides
which settings are tried, and for how many rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fedsim.checks import plain_name, whole
from fedsim.controller.notes import telling_once
from fedsim.errors import ConfigError, DivergenceError, suggest
from fedsim.experiment.config import to_config
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.stopping import lower_is_better
from fedsim.report.series import Series, load_runs
from fedsim.report.statistics import Estimate, best, estimate
from fedsim.sweeps.grid import Point, Sweep
from fedsim.sweeps.jobs import run_sweep
from fedsim.sweeps.search import check_search, ends, halving_trial, kept, rungs, some_of
from fedsim.sweeps.widened import check_folder, widened

WITHHELD = 0.2
"""Share of every client's samples on which settings are chosen."""
APART = 1000
"""Distance of the first seed of the choice from the first one of the experiment."""


@dataclass(frozen=True)
class Tuned:
    """The chosen settings, and what they were chosen by.

    Attributes:
        tuning: sweep of all settings; None if no method has several.
        final: sweep of the chosen settings, with a point for each method.
        chosen: chosen setting of each method.
        withheld: metric on withheld samples, for each method and each setting that was left at the end; NaN if a seed
            diverged or the metric is undefined.
        metric: the metric that chose.
        rounds: rounds that the choice took for each method, over all its settings, for one seed.
        tried: names of the settings of each method.
        ends: remarks on chosen numbers that are the least or largest that were tried.
    """

    tuning: Sweep | None
    final: Sweep
    chosen: Mapping[str, str]
    withheld: Mapping[str, Mapping[str, Estimate]]
    metric: str
    rounds: Mapping[str, int] = field(default_factory=dict)
    tried: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ends: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """Run directories of the chosen settings, in the order of the methods; those that diverged have none."""
        points = [point for point in self.final.points if point.name in map(_plain, self.chosen)]   # now, or before
        return [path for point in points if (path := self.final.directory(point)).is_dir()]


@telling_once()
def tune(
    methods: Mapping[str, Mapping[str, Experiment]],
    folder: Path | str,
    *,
    seeds: int = 2,
    seed: int | None = None,
    metric: str = "accuracy",
    search: str = "grid",
    trials: int | None = None,
    eta: int = 3,
    jobs: int | None = None,
    progress: bool = True,
) -> Tuned:
    """Choose the setting of each method, and run it. Called again, it continues; with more methods or settings, it runs
    the new ones.

    Args:
        methods: for each method experiments by the names of their settings, such as
            ``{"FedAvg": {"lr=0.1": Experiment(FedAvg(0.1)), "lr=0.3": ...}, ...}``.
        folder: folder of both sweeps.
        seeds: number of seeds on which settings are chosen.
        seed: the first of these seeds; by default `APART` after the experiment's.
        metric: metric that chooses, weighted by samples: ``accuracy``, ``loss`` or a metric of the experiments.
        search: ``grid`` tries all settings, ``random`` a random sample, ``halving`` continues the best of them.
        trials: number of settings of each method that are drawn; by default all are tried.
        eta: for halving: one in ``eta`` settings continues, for ``eta`` times as many rounds.
        jobs: number of concurrent runs; see `fedsim.sweep`.
        progress: show progress on stderr.

    Raises:
        ConfigError: there are no methods or settings, the number of seeds is wrong, an experiment cannot be expressed
            in a file, the folder holds something else, or the metric is undefined for all settings of a method that do
            not diverge.
        DivergenceError: a method diverges with all of its settings.
    """
    whole("tuning seeds", seeds, 1)
    check_search(search, trials, eta)
    lower = _check_methods(methods, metric)
    check_folder(folder := Path(folder))
    first = {method: next(iter(grid.values())) for method, grid in methods.items()}
    tried = {m: some_of(grid, trials, first[m].seed) for m, grid in methods.items() if len(grid) > 1}
    made = {m: _trials_of(m, grid, seeds, seed, eta if search == "halving" else None) for m, grid in tried.items()}
    chosen, tuning = {method: next(iter(grid)) for method, grid in methods.items()}, None
    withheld: dict[str, dict[str, Estimate]] = {}
    spent: dict[str, int] = {}
    if made:
        every = [point for own in made.values() for point in own.points.values()]
        tuning = run_all(every, folder / "tuning", jobs, progress)
        for method, own in made.items():
            scope = "clients/holdout" if first[method].topology is None else "nodes/holdout"
            measure = partial(value_of, tuning, scope=scope, metric=f"{metric}_weighted_mean")
            withheld[method], spent[method] = _halved(tuning, own, eta, lower, measure, jobs, progress)
            finished = [name for name, point in own.points.items() if point.name not in tuning.failures]
            chosen[method] = _best(method, metric, withheld[method], finished, lower)
    finals = [_point(method, methods[method][name].with_execution(name=method)) for method, name in chosen.items()]
    final = run_all(finals, folder / "final", jobs, progress, list(tried))
    names = {method: list(grid) for method, grid in tried.items()}
    at_ends = {method: ends(tried[method], chosen[method]) for method in tried}
    return Tuned(tuning, final, chosen, withheld, metric, spent, names, at_ends)


def _check_methods(methods: Mapping[str, Mapping[str, Experiment]], metric: str) -> bool:
    """Check that all methods have settings that measure the metric; return whether lower values of it are better."""
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
    return lower_is_better(metric, larger)


class MethodTrials(NamedTuple):
    """The trials of a method.

    Attributes:
        points: points of the sweep, by setting.
        rungs: rounds after which settings are dropped, and at last all rounds; empty without halving.
    """

    points: Mapping[str, Point]
    rungs: Sequence[int]


def _trials_of(
    method: str, grid: Mapping[str, Experiment], seeds: int, seed: int | None, eta: int | None
) -> MethodTrials:
    """The trials of the settings of a method; with ``eta``, for halving."""
    trials = {name: trial(made, seeds, seed) for name, made in grid.items()}
    if eta is None:
        return MethodTrials({name: _point(f"{method},{name}", made) for name, made in trials.items()}, [])
    steps = rungs(next(iter(trials.values())).rounds, len(trials), eta)
    halved = {name: halving_trial(made, steps[0]) for name, made in trials.items()}
    return MethodTrials({name: _point(f"{method},{name}", made) for name, made in halved.items()}, steps)


def _halved(
    sweep: Sweep, own: MethodTrials, eta: int, lower: bool, measure: Callable[..., Estimate], jobs: int | None,
    progress: bool,
) -> tuple[dict[str, Estimate], int]:  # fmt: skip
    """Values of the settings that are left at the end, which without halving are all, and the rounds that all took."""
    points, steps, left = own.points, own.rungs, list(own.points)
    spent = sum(point.config["rounds"] for point in points.values())
    for before, rounds in pairwise(steps):
        values = {name: measure(points[name], round=before).mean for name in left}
        left = kept(values, eta, lower)
        going_on = [name for name in left if not math.isnan(values[name])]
        spent += (rounds - before) * len(going_on)
        run_sweep(sweep, jobs, progress=progress, rounds={points[name].name: rounds for name in going_on})
        _check_failures(sweep, points.values())
    last = steps[-1] if steps else None
    return {name: measure(points[name], round=last) for name in left}, spent


def _point(name: str, made: Experiment) -> Point:
    return Point(_plain(name), to_config(made))


def _plain(name: str) -> str:
    return name.replace(" ", "")


def trial(made: Experiment, seeds: int, seed: int | None = None) -> Experiment:
    """The trial of an experiment: on other seeds, evaluated once, on samples that clients withhold."""
    evaluation = replace(made.evaluation, every=made.rounds, clients_every=0, holdout=WITHHELD)
    return replace(made, seed=made.seed + APART if seed is None else seed, seeds=seeds, evaluation=evaluation)


def run_all(
    points: Sequence[Point], folder: Path, jobs: int | None, progress: bool, chosen: Collection[str] = ()
) -> Sweep:
    """Run the unfinished ones of these points in the sweep of this folder; see `widened`.

    Raises:
        ConfigError: a point failed for another reason than that it diverged.
        KeyboardInterrupt: after checkpoints of all running points.
    """
    sweep = widened(points, folder, chosen)
    try:
        run_sweep(sweep, jobs, progress=progress, rounds={point.name: point.config["rounds"] for point in points})
    except KeyboardInterrupt:                              # the sweep alone could be resumed, but not what needs it
        raise KeyboardInterrupt("repeat what you ran, and it goes on from here") from None
    _check_failures(sweep, points)
    return sweep


def _check_failures(sweep: Sweep, points: Iterable[Point]) -> None:
    names = {point.name for point in points}
    for name, reason in sweep.failures.items():
        if name in names and not reason.startswith(DivergenceError.__name__):
            raise ConfigError(f"{sweep.path / name}: {reason}")


def value_of(sweep: Sweep, point: Point, scope: str, metric: str, round: int | None = None) -> Estimate:
    """Value of a point over its seeds, at its end or after a round; NaN if a seed diverged."""
    if point.name in sweep.failures and round is None:
        return Estimate(math.nan, None, point.config["seeds"])
    (run,) = load_runs([sweep.directory(point)], scope, metric)
    return estimate([_at(series, round) for series in run.seeds.values()])


def _at(series: Series, round: int | None) -> float:
    """The last value, or that of a round; NaN if the seed diverged before it."""
    if round is None:
        return float(series.value[-1])
    found = series.value[series.cost["round"] == round]
    return float(found[0]) if len(found) else math.nan


def _best(method: str, metric: str, values: Mapping[str, Estimate], finished: Collection[str], lower: bool) -> str:
    winner = best([value.mean for value in values.values()], lower)
    if math.isnan(winner) and finished:
        raise ConfigError(
            f"{metric} is undefined on the samples that clients withhold with every setting of {method} that does not"
            f" diverge: {', '.join(finished)}; choose by another metric, or give clients more samples"
        )
    if math.isnan(winner):
        raise DivergenceError(f"{method} diverges with every setting: {', '.join(values)}; give it smaller steps")
    return next(name for name, value in values.items() if value.mean == winner)
