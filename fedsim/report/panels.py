"""Data of the interactive charts of a report: every metric of every run against every cost, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from fedsim.experiment.stopping import lower_is_better
from fedsim.report.compare import PAID, Comparison, directions
from fedsim.report.curves import Curve, curves_of, scales
from fedsim.report.layout import look
from fedsim.report.pareto import front, totals
from fedsim.report.recorded import Recorded
from fedsim.report.ribbons import POINTS, QUANTILES, ribbon_of
from fedsim.report.series import AXES, OF_CLIENTS, RunSeries, Series, series_of
from fedsim.report.sweep_maps import in_order, in_words, varied_settings

EACH = 1000
"""Most clients that are drawn one by one."""
SHARES = 101
"""Points of a curve over clients: the percentiles."""
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def panels(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page draws, as values for JSON; None stands for NaN.

    Returns:
        ``runs``: label, colour and dashes; ``axes``: label by cost; ``metrics``: for each a title, whether it is drawn
        on a logarithmic axis, its target, and by run ``x`` by cost, ``mean`` and ``half``, the half width of the 95 %
        interval; ``clients``: for each metric of single clients by run the mean over seeds of its percentiles over
        clients, at their last evaluation, its quantiles by round, and the last values of up to `EACH` clients;
        ``pareto``: final value and total costs of each run, and the front; ``sweep``: settings that differ, with
        the place of each run's value among them.
    """
    runs = [summary.run for summary in comparison.runs]
    recorded = [{seed: run.recorded[seed] for seed in run.seeds if seed in run.recorded} for run in runs]
    return {
        "runs": [_run(index, run) for index, run in enumerate(runs)],
        "axes": {name: text for name, text in AXES.items() if any(_paid(run, name) for run in runs)},
        "metrics": [_compared(comparison), *_others(comparison, runs, recorded)],
        "clients": _clients(recorded),
        "pareto": None if comparison.scope in PAID else _pareto(comparison),
        "sweep": _settings(runs),
    }


def _pareto(comparison: Comparison) -> dict[str, Any]:
    finals = [summary.final for summary in comparison.runs]
    values, costs = [final.mean for final in finals], totals(comparison)
    widths = [final.half_width or 0.0 for final in finals]
    return {
        "title": f"final {comparison.metric.replace('_', ' ')}",
        "lower": comparison.lower,
        "share": comparison.metric.startswith("accuracy"),
        "value": _numbers(np.array(values)),
        "half": _numbers(np.array(widths)) if any(widths) else None,
        "costs": {x: _numbers(np.array(paid)) for x, paid in costs.items()},
        "front": {
            x: sorted(front(paid, values, comparison.lower), key=lambda run, paid=paid: paid[run])  # type: ignore[misc]
            for x, paid in costs.items()
        },
    }


def _settings(runs: Sequence[RunSeries]) -> dict[str, Any] | None:
    """Settings that differ and that every run has, for a heat map; None for fewer than two settings or four runs."""
    known = {name: values for name, values in varied_settings(runs).items() if None not in values}
    varied = {name: [in_words(value) for value in values] for name, values in known.items()}
    ordered = {name: in_order(values) for name, values in known.items()}
    if len(varied) < 2 or len(runs) < 4:
        return None
    return {
        name: {"values": ordered[name], "at": [ordered[name].index(text) for text in texts]}
        for name, texts in varied.items()
    }


def _run(index: int, run: RunSeries) -> dict[str, str]:
    color, dashes = look(index)
    return {"label": run.label, "name": escape(run.label), "color": color, "dash": DASHES[dashes]}


def _paid(run: RunSeries, name: str) -> bool:
    return any(np.isfinite(series.cost[name]).any() for series in run.seeds.values())


def _compared(comparison: Comparison) -> dict[str, Any]:
    """The metric of the comparison, with its target."""
    curves = [_curves(summary.run.seeds) for summary in comparison.runs]
    scopes = " or ".join(dict.fromkeys(summary.run.scope for summary in comparison.runs))
    whose = "" if comparison.client is None else f" of client {comparison.client}"
    return _metric(f"{comparison.metric}{whose} ({scopes})", comparison.lower, curves, comparison.target)


def _others(
    comparison: Comparison, runs: Sequence[RunSeries], recorded: Sequence[Mapping[int, Recorded]]
) -> list[dict[str, Any]]:
    """All other metrics that belong to no single client and are not costs."""
    larger = directions(runs)
    known = {key for run in runs for series in run.seeds.values() for key in series.last if key[0] not in PAID}
    shown = {(run.scope, comparison.metric) for run in runs} if comparison.client is None else set()
    found = []
    for scope, name in sorted(known - shown):
        curves = [_curves({seed: series_of(files, scope, name) for seed, files in seeds.items()}) for seeds in recorded]
        found.append(_metric(f"{name} ({scope})", lower_is_better(name, larger), curves))
    return found


def _curves(seeds: Mapping[int, Series]) -> dict[str, Curve]:
    """Curve by cost, of a metric that all seeds recorded in the same rounds; none otherwise."""
    if not seeds or not all(len(series.value) for series in seeds.values()):
        return {}
    curves = curves_of(seeds, AXES)
    if not len(curves["round"].x):                         # as of clients, measured where each seed ended
        return {}
    return {name: curve for name, curve in curves.items() if name == "round" or np.isfinite(curve.x).all()}


def _metric(
    title: str, lower: bool, curves: Sequence[Mapping[str, Curve]], target: float | None = None
) -> dict[str, Any]:
    drawn = [curve["round"] for curve in curves if curve]
    return {
        "title": title.replace("_", " "),
        "log": bool(drawn) and scales(lower, drawn)[1],
        "share": title.startswith("accuracy"),
        "target": target,
        "curves": [_plain(curve) if curve else None for curve in curves],
    }


def _plain(curves: Mapping[str, Curve]) -> dict[str, Any]:
    rounds = curves["round"]
    at = np.unique(np.linspace(0, len(rounds.mean) - 1, POINTS).round().astype(int))
    return {
        "x": {name: _numbers(curve.x[at]) for name, curve in curves.items()},
        "mean": _numbers(rounds.mean[at]),
        "half": None if rounds.half_width is None else _numbers(rounds.half_width[at]),
    }


def _clients(recorded: Sequence[Mapping[int, Recorded]]) -> list[dict[str, Any]]:
    """Percentiles over clients of their metrics at their last evaluation, and quantiles by round."""
    every = {key for seeds in recorded for files in seeds.values() for key in files.clients}
    keys = sorted(key for key in every if key[0] in OF_CLIENTS)
    shares = np.linspace(0, 100, SHARES)
    found = []
    for scope, name in keys:
        curves: list[dict[str, Any] | None] = []
        for seeds in recorded:
            values = [files.clients[scope, name].last() for files in seeds.values() if (scope, name) in files.clients]
            each = [np.percentile(list(value.values()), shares) for value in values if value]
            if not each:
                curves.append(None)
                continue
            at_end = {"share": _numbers(shares), "value": _numbers(np.mean(each, axis=0)), "each": _one_by_one(values)}
            ribbon = ribbon_of(seeds, (scope, name))
            by_round: dict[str, Any] = {"x": [], "quantiles": [[] for _ in QUANTILES]}
            if ribbon is not None:
                by_round = {"x": _numbers(ribbon.x["round"]), "quantiles": [_numbers(row) for row in ribbon.value]}
            curves.append({**at_end, "ribbon": by_round})
        found.append({"title": f"{name} ({scope})".replace("_", " "), "curves": curves})
    return found


def _one_by_one(seeds: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    """Mean over seeds of the last value of each client; if there are too many, of every second one, third one, ..."""
    clients = sorted({client for values in seeds for client in values})
    clients = clients[:: -(-len(clients) // EACH)]
    means = [np.mean([values[client] for values in seeds if client in values]) for client in clients]
    return {"client": clients, "value": _numbers(np.array(means))}


def _numbers(values: np.ndarray) -> list[float | None]:
    """Values for JSON, with six digits: more than a picture shows, in a third of the bytes."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
