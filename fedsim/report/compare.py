"""Compare runs: final, late and best values, paired differences, and the cost of reaching a target.

All numbers are means over seeds with 95 % Student-t intervals (`fedsim.report.statistics`). Differences are paired: a
run and the baseline share data and initial model under the same seed, so the effect of the seed cancels. The cost of a
target is counted up to the first evaluated round that reaches it. A run with a seed that never reaches it has no mean
cost, which would be that of its lucky seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import ConfigError, suggest
from fedsim.experiment.stopping import lower_is_better
from fedsim.record.directory import RunDirectory
from fedsim.report.comparable import doubts
from fedsim.report.series import NOTHING, OF_SOME, RunSeries, load, relabelled, under_metric
from fedsim.report.statistics import Estimate, best, default_target, estimate, first_reached, holm, p_value

EXAMPLES = {"scope": "server/test", "metric": "accuracy"}
LATE = 5
"""Number of evaluations at the end whose mean is the late value; a final value depends strongly on the last cohort."""
COSTS = {
    "round": "rounds",
    "megabytes": "MB",
    "gradient_evaluations": "grad evals",
    "simulated_seconds": "sim. seconds",
}
COUNTS = ("round", "gradient_evaluations")
PAID = ("simulated", "total")
"""Scopes of cumulative costs, which begin at 0 and therefore have no best round and no target."""


@dataclass(frozen=True)
class RunSummary:
    """One run over its seeds.

    Attributes:
        run: its series and settings.
        final: the metric at the last evaluated round.
        late: mean over the last `LATE` evaluated rounds of each seed, without round 0; None if there are fewer.
        best: the best value over the evaluated rounds of each seed.
        difference: final minus the final of the baseline, paired by seed; None for the baseline itself, and if the
            runs have no seed in common.
        reached: number of seeds that reached the target.
        cost: cost at the target by name (`COSTS`); None unless all seeds reached it and recorded that cost.
        p: p value of the difference, by a paired t-test, corrected for the number of runs that are compared with the
            baseline (Holm 1979); None if fewer than two seeds are in common.
    """

    run: RunSeries
    final: Estimate
    late: Estimate | None
    best: Estimate
    difference: Estimate | None
    reached: int
    cost: Mapping[str, Estimate | None]
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Several runs under one metric.

    Attributes:
        scope: model and samples measured, e.g. ``server/test``.
        metric: e.g. ``accuracy``.
        lower: whether lower values are better.
        client: id of the client whose metric it is; None for a metric that belongs to no client.
        target: value up to which costs are counted; None if every run diverged.
        baseline: label of the run that differences refer to.
        runs: in the order of the arguments.
        warnings: reasons why the numbers may not be comparable.
    """

    scope: str
    metric: str
    target: float | None
    baseline: str
    runs: tuple[RunSummary, ...]
    warnings: tuple[str, ...]
    lower: bool
    client: int | None = None


def compare(
    paths: Path | str | RunDirectory | Sequence[Path | str | RunDirectory],
    scope: str = "server/test",
    metric: str = "accuracy",
    target: float | None = None,
    baseline: str = "first",
    client: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare all runs at these paths.

    Args:
        paths: runs as `fedsim.run` returns them, their directories, or folders that contain runs.
        scope: model and samples of the metric.
        metric: its name in the metrics file.
        target: count costs up to this value; by default a round number 5 to 7 % short of the best mean final value.
        baseline: label of a run, ``first``, or ``best`` (by mean final value).
        client: id of a client whose own metric to compare: by default on its samples, or that of its model on the test
            set.
        labels: new labels of runs, by their directories or default labels.

    Raises:
        RunError: no run there.
        ConfigError: unknown metric or baseline, labels of no run, or a target of a cost.
    """
    places = paths_of(paths)
    for name, text in (("scope", scope), ("metric", metric)):
        if not isinstance(text, str):
            raise ConfigError(f"{name} is {text!r}; expected the name of one, such as {EXAMPLES[name]!r}")
    if target is not None and not (isinstance(target, Real) and math.isfinite(target)):
        raise ConfigError(f"target is {target!r}; expected a finite value of the metric, such as 0.9")
    found = load(places, scope, metric, client)
    runs = relabelled(found.runs, labels or {})
    if scope in PAID and target is not None:
        raise ConfigError(f"{scope} {metric} is a cost, which has no target; give that of a metric")
    return _compared(runs, scope, metric, target, baseline, client, (*found.left_out, *doubts(runs)))


def _compared(
    runs: Sequence[RunSeries], scope: str, metric: str, target: float | None, baseline: str, client: int | None,
    warnings: tuple[str, ...],
) -> Comparison:  # fmt: skip
    lower = lower_is_better(metric, directions(runs))
    finals = [estimate([series.value[-1] for series in run.seeds.values()]) for run in runs]
    means = [final.mean for final in finals]
    target = default_target(means, lower) if target is None and scope not in PAID else target
    reference = _baseline(runs, means, lower, baseline)
    summaries = tuple(_summary(run, final, reference, lower, target) for run, final in zip(runs, finals, strict=True))
    return Comparison(scope, metric, target, reference.label, _tested(summaries), warnings, lower, client)


def under(comparison: Comparison, name: str) -> Comparison:
    """The same runs under another metric that belongs to no client, by its name or scope and name; without a target.

    Raises:
        ConfigError: a run never recorded it (names those that it did record).
    """
    *scope, metric = name.split()
    where = " ".join(scope) or (comparison.scope if comparison.client is None else "server/test")
    runs = [under_metric(summary.run, where, metric) for summary in comparison.runs]
    made = _compared(runs, where, metric, None, comparison.baseline, None, comparison.warnings)
    return replace(made, target=None)


def directions(runs: Sequence[RunSeries]) -> dict[str, bool]:
    """Whether larger values are better, for the further metrics of runs.

    Raises:
        ConfigError: runs differ in it.
    """
    found: dict[str, bool] = {}
    for run in runs:
        for name, larger in run.manifest.get("larger_is_better", {}).items():
            if found.setdefault(name, larger) != larger:
                raise ConfigError(f"larger values of {name} are better in some runs and worse in {run.label}")
    return found


def paths_of(runs: Any) -> list[Path]:
    """Paths of one or several runs, each given by its path or by an object that has one, as `fedsim.run` returns it.

    Raises:
        ConfigError: something else was given.
    """
    listed = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    paths: list[Any] = [getattr(run, "path", run) for run in listed]
    for path in paths:
        if not isinstance(path, Path | str):
            raise ConfigError(f"got {path!r:.200}; expected runs: their directories, or what fedsim.run returns")
    return [Path(path) for path in paths]


def _baseline(runs: Sequence[RunSeries], means: Sequence[float], lower: bool, baseline: str) -> RunSeries:
    by_label = {run.label: run for run in runs}
    if baseline in by_label:
        return by_label[baseline]
    if baseline == "best":
        winner = best(means, lower)
        return runs[0 if math.isnan(winner) else list(means).index(winner)]
    if baseline == "first":
        return runs[0]
    raise ConfigError(f"baseline is {baseline!r}; {suggest(baseline, [*by_label, 'first', 'best'])}")


def _summary(run: RunSeries, final: Estimate, reference: RunSeries, lower: bool, target: float | None) -> RunSummary:
    common = [seed for seed in run.seeds if seed in reference.seeds and run is not reference]
    differences = [run.seeds[seed].value[-1] - reference.seeds[seed].value[-1] for seed in common]
    rows = {
        seed: None if target is None else first_reached(series.value, target, lower)
        for seed, series in run.seeds.items()
    }
    costs: dict[str, Estimate | None] = {}
    for name in COSTS:
        paid = [run.seeds[seed].cost[name][row] for seed, row in rows.items() if row is not None]
        complete = len(paid) == len(rows) and not any(map(math.isnan, paid))
        costs[name] = estimate(paid) if complete else None
    trained = [series.value[series.cost["round"] > 0] for series in run.seeds.values()]
    return RunSummary(
        run=run,
        final=final,
        late=estimate([v[-LATE:].mean() for v in trained]) if all(len(v) >= LATE for v in trained) else None,
        best=estimate([best(series.value, lower) for series in run.seeds.values()]),
        difference=estimate(differences) if differences else None,
        reached=sum(row is not None for row in rows.values()),
        cost=costs,
    )


def _tested(summaries: Sequence[RunSummary]) -> tuple[RunSummary, ...]:
    """Add the p values of the differences, corrected for their number."""
    raw = {row: p_value(summary.difference) for row, summary in enumerate(summaries) if summary.difference}
    known = {row: p for row, p in raw.items() if p is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    return tuple(replace(summary, p=corrected.get(row)) for row, summary in enumerate(summaries))


def text_of(
    value: Estimate | None, missing: str = "-", sign: str = "-", nan: str = "diverged", counted: bool = False
) -> str:
    """Format an estimate: mean ± half width, or the mean of a single seed, which has no interval; ``nan`` for NaN.

    Args:
        counted: whether it is of whole numbers; that of a single seed is then one.
    """
    if value is None:
        return missing
    if math.isnan(value.mean):
        return nan
    size = abs(value.mean)
    tiny = 0 < max(size, value.half_width or 0) < 0.001    # as gaps to an optimum become
    whole = size >= 1000 or (counted and value.half_width is None)
    form = ".2e" if tiny else ",.0f" if whole else ",.1f" if size >= 10 else ",.3f"
    mean = f"{value.mean:{sign}{form}}"
    if value.half_width is None:
        return f"{mean} (1 seed)"
    return f"{mean} ±\N{NO-BREAK SPACE}{value.half_width:{form}}"


def costs_of(comparison: Comparison) -> dict[str, str]:
    """The `COSTS` of a comparison, none if its metric is one; simulated seconds only where a run has recorded some."""
    if comparison.scope in PAID:
        return {}
    series = [series for summary in comparison.runs for series in summary.run.seeds.values()]
    timed = any(np.isfinite(each.cost["simulated_seconds"]).any() for each in series if each is not NOTHING)
    return {name: unit for name, unit in COSTS.items() if timed or name != "simulated_seconds"}


def columns_of(comparison: Comparison, chosen: Sequence[str] | None = None) -> dict[str, str]:
    """Titles of the columns behind the run's, by name: all but ``p``, or those chosen, in their order.

    Raises:
        ConfigError: no such column.
    """
    difference = {"difference": f"− {comparison.baseline}"} if len(comparison.runs) > 1 else {}
    measured = {"seeds": "seeds", "final": "final", "late": f"last {LATE}", "best": "best"}
    if comparison.scope in PAID:
        measured = {"seeds": "seeds", "final": "final"}
    p = {"p": "p (Holm)"} if difference else {}
    titles = {**measured, **difference, **p, **costs_of(comparison)}
    for name in chosen or ():
        if name in ("difference", "p") and len(comparison.runs) == 1:
            only = f"{comparison.runs[0].run.path} is the only run; add another"
            raise ConfigError(f"the column {name} is of a run against a baseline, and {only}")
        if name not in titles:
            if name in OF_SOME:
                known = ", ".join(titles)
                raise ConfigError(f"no run here recorded the column {name}{OF_SOME[name]}; known: {known}")
            raise ConfigError(f"there is no column {name!r}; {suggest(name, titles)}")
    return {name: titles[name] for name in chosen or [name for name in titles if name != "p"]}


def header(comparison: Comparison, chosen: Sequence[str] | None = None) -> list[str]:
    """Column titles of `cells`."""
    return ["run", *columns_of(comparison, chosen).values()]


def cells(comparison: Comparison, chosen: Sequence[str] | None = None) -> list[list[str]]:
    """The comparison as text, one row a run, with the columns that are chosen."""
    rows, names = [], columns_of(comparison, chosen)
    costs = [name for name in names if name in COSTS]
    nan = {summary.run.label: summary.run.of_nan() for summary in comparison.runs}
    for summary in comparison.runs:
        own = nan[summary.run.label]
        either = "diverged" if nan[comparison.baseline] == "diverged" else own
        seeds = len(summary.run.seeds)
        short = f"missed by {seeds - summary.reached} of {seeds}"
        missing = ["not recorded"] * len(costs) if summary.reached == seeds else [short, *["–"] * len(costs)]
        alone = "baseline" if summary.run.label == comparison.baseline else "no common seed"
        texts = {"seeds": str(seeds), "difference": text_of(summary.difference, alone, "+", either)}
        texts["p"] = "-" if summary.p is None else "< 0.001" if summary.p < 0.001 else f"{summary.p:.3f}"
        texts |= {name: text_of(getattr(summary, name), nan=own) for name in ("final", "late", "best")}
        for name, why in zip(costs, missing, strict=False):
            texts[name] = text_of(summary.cost[name], why, counted=name in COUNTS)
        rows.append([summary.run.label, *(texts[name] for name in names)])
    return rows


def title(comparison: Comparison) -> str:
    """Metric, scope and target of a comparison."""
    scopes = " or ".join(dict.fromkeys(summary.run.scope for summary in comparison.runs))
    target = "" if comparison.target is None else f", and its cost to reach {comparison.target:g}"
    whose = "" if comparison.client is None else f" of client {comparison.client}"
    return f"{comparison.metric}{whose} on {scopes}{target}"


def notes(comparison: Comparison, chosen: Sequence[str] | None = None) -> str:
    """Explanation of the columns of `cells`."""
    shown = columns_of(comparison, chosen)
    texts = {
        "final": "Mean over seeds ± 95 % Student-t interval (none for one seed).",
        "late": f"Last {LATE}: mean of the last {LATE} evaluations (-: there are fewer after round 0).",
        "difference": f"“− {comparison.baseline}”: difference of final values, paired by seed.",
        "p": "p: paired t-test of that difference over seeds, corrected for the number of runs (Holm).",
        "cost": "Costs: up to the first evaluation that reaches the target. Missed: seeds that never reached it.",
        "megabytes": "MB: sent and received by clients, 10⁶ bytes; a message between two of them counts for both.",
        "gradient_evaluations": "Grad evals: gradient evaluations of all clients.",
        "simulated_seconds": "Sim. seconds: by the clock of the experiment.",
    }
    if comparison.scope in PAID:
        texts["paid"] = f"{comparison.metric}: a cost, of the whole run; compare a metric for that of a target."
    explained = {"final", "paid", *shown, *(["cost"] if set(COSTS) & set(shown) else [])}
    return " ".join(text for name, text in texts.items() if name in explained)
