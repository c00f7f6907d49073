"""The Pareto front of runs: those with a better final metric than all runs that cost no more."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, NamedTuple, Unpack

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from fedsim.errors import ConfigError, RunError
from fedsim.record import figures
from fedsim.report.compare import PAID, Comparison
from fedsim.report.curves import check_cost, check_recorded, scopes_of, several
from fedsim.report.layout import Options, Size, frame, look, plain, sheet, size_of
from fedsim.report.series import AXES, RunSeries
from fedsim.report.statistics import Estimate, estimate

MARKERS = "os^DvPX"
NAMED = 12
"""Most runs that are named beside their points."""


def pareto(
    comparison: Comparison,
    path: Path | str | IO[bytes],
    x: str = "megabytes",
    format: str | None = None,
    **options: Unpack[Options],
) -> None:
    """Draw the final metric of each run against the cost of the whole run, and the Pareto front.

    Args:
        comparison: comparison of the runs.
        path: file whose suffix names the format (png, svg, pdf), or an open binary file, with ``format``.
        x: the cost; see `fedsim.curves`.
        format: format for an open file.
        options: see `fedsim.report.layout.Options`; there is no target line.

    Raises:
        ConfigError: the metric is itself a cost, or no run recorded the cost ``x``.
        RunError: all diverged.
    """
    figures.write(path, lambda: draw_pareto(comparison, x, **options), format)


def draw_pareto(comparison: Comparison, x: str = "megabytes", **options: Unpack[Options]) -> Figure:
    """Return the figure of `pareto`."""
    check_cost(x)
    size_of(options)
    metric, cost_name = comparison.metric.replace("_", " "), x.replace("_", " ")
    if comparison.scope in PAID:
        raise ConfigError(f"{comparison.scope} {comparison.metric} is a cost; choose a metric to draw against costs")
    costs = [total(summary.run, x) for summary in comparison.runs]
    first = front(costs, [summary.final.mean for summary in comparison.runs], comparison.lower)
    if not first:
        check_recorded(x, [np.array(costs)])
        raise RunError(f"no run has both a final {comparison.metric} and its {cost_name}; choose another x")
    points = [
        RunPoint(summary.run.label, cost, summary.final, index in first)
        for index, (summary, cost) in enumerate(zip(comparison.runs, costs, strict=True))
    ]
    figure, (axes,), size = sheet(options)
    legend = _draw_points(axes, points, size)
    _scale(axes, costs, options)
    legend |= _draw_front(axes, points)
    if 1 < len(points) <= NAMED:
        _name_points(axes, points, size)
    axes.margins(0.12)
    if comparison.metric.startswith("accuracy"):           # with two seeds the interval is wide
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1.02))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    plain(axes, size)
    axes.set_xlabel(textwrap.fill(options.get("xlabel", AXES[x]), size.characters - 8), fontsize=size.font)
    axes.set_ylabel(options.get("ylabel", f"final {metric}"), fontsize=size.font)
    seeds = ", mean over seeds, bar: 95 % Student-t interval" * several(comparison)
    notes = (
        f"A point: a run at its end{seeds}. Better is {'lower' if comparison.lower else 'higher'}, and further"
        " left. Front (black edges): no other run is at least as good in both and better in one."
    )
    title = f"Final {metric} ({scopes_of(comparison)}) against {cost_name}"
    frame(figure, size, options, title, legend, notes)
    return figure


class RunPoint(NamedTuple):
    """A run in the picture.

    Attributes:
        label: its label.
        cost: its total cost.
        final: its final metric.
        first: whether it is on the front.
    """

    label: str
    cost: float
    final: Estimate
    first: bool


def _draw_points(axes: Axes, points: Sequence[RunPoint], size: Size) -> dict[str, Artist]:
    """Draw the runs with their intervals, and return the entries of the legend."""
    legend: dict[str, Artist] = {}
    for index, (label, cost, final, first) in enumerate(points):
        color, marker = look(index)[0], MARKERS[index // 7 % len(MARKERS)]
        legend[label] = axes.scatter(
            cost, final.mean, s=0.55 * size.font**2, color=color, marker=marker, zorder=3, linewidths=0.9,
            edgecolors="black" if first else "white",
        )  # fmt: skip
        if final.half_width is not None:
            axes.vlines(cost, final.mean - final.half_width, final.mean + final.half_width, color=color, lw=1, zorder=1)
    return legend


def _scale(axes: Axes, costs: Sequence[float], options: Options) -> None:
    """Make axes logarithmic, as chosen or, for costs, by the data."""
    known, log_x = [cost for cost in costs if np.isfinite(cost)], options.get("log_x")
    if log_x or (log_x is None and min(known) > 0 and max(known) > 10 * min(known)):
        axes.set_xscale("log")
    if options.get("log_y"):
        axes.set_yscale("log")


def _draw_front(axes: Axes, points: Sequence[RunPoint]) -> dict[str, Artist]:
    """Draw the front, and return its entry of the legend; none for a front of one point, which cannot be seen."""
    corners = np.array(sorted(((p.cost, p.final.mean) for p in points if p.first), key=itemgetter(0)))
    if len(np.unique(corners, axis=0)) == 1:
        return {}
    (line,) = axes.step(*corners.T, where="post", color="0.45", lw=1.1, ls=(0, (4, 2)), zorder=2)
    return {"Pareto front": line}


def _name_points(axes: Axes, points: Sequence[RunPoint], size: Size) -> None:
    """Write labels beside the points: above those of the front and below others, so that they seldom meet."""
    for label, cost, final, first in points:
        if np.isfinite([cost, final.mean]).all():
            axes.annotate(
                label, (cost, final.mean), xytext=(6, 6 if first else -6), zorder=4,
                va="baseline" if first else "top", textcoords="offset points", fontsize=0.8 * size.font, color="0.25",
            )  # fmt: skip


def total(run: RunSeries, x: str) -> float:
    """Total cost of a run, the mean over its seeds."""
    return estimate([float(series.cost[x][-1]) for series in run.seeds.values()]).mean


def front(costs: Sequence[float], values: Sequence[float], lower: bool) -> list[int]:
    """Indices of the points that no other one dominates: none is at least as good in both, and better in one."""
    points = [(cost, value if lower else -value) for cost, value in zip(costs, values, strict=True)]
    known = [index for index, point in enumerate(points) if np.isfinite(point).all()]
    return [
        index for index in known
        if not any(
            points[other] != points[index]
            and points[other][0] <= points[index][0] and points[other][1] <= points[index][1]
            for other in known
        )
    ]  # fmt: skip


def totals(comparison: Comparison) -> Mapping[str, list[float]]:
    """Total cost of each run by its name, of the costs that some run recorded."""
    every = {x: [total(summary.run, x) for summary in comparison.runs] for x in AXES}
    return {x: costs for x, costs in every.items() if np.isfinite(costs).any()}
