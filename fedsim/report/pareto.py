"""The Pareto front of runs: those with a better final metric than all runs that cost no more."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Unpack

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from fedsim.errors import ConfigError, RunError
from fedsim.record import figures
from fedsim.report.compare import PAID, Comparison
from fedsim.report.curves import check_cost, check_recorded, scopes_of, several
from fedsim.report.layout import Options, frame, look, plain, sheet, size_of
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
    if comparison.scope in PAID:
        raise ConfigError(f"{comparison.scope} {comparison.metric} is a cost; choose a metric to draw against costs")
    costs = [total(summary.run, x) for summary in comparison.runs]
    finals = [summary.final for summary in comparison.runs]
    first = front([cost.mean for cost in costs], [final.mean for final in finals], comparison.lower)
    if not first:
        check_recorded(x, [np.array([cost.mean for cost in costs])])
        raise RunError(f"no run has both a final {comparison.metric} and its {x.replace('_', ' ')}; choose another x")
    figure, (axes,), size = sheet(options)
    legend: dict[str, Artist] = {}
    for index, (summary, cost, final) in enumerate(zip(comparison.runs, costs, finals, strict=True)):
        color, marker = look(index)[0], MARKERS[index // 7 % len(MARKERS)]
        legend[summary.run.label] = axes.scatter(
            cost.mean, final.mean, s=0.55 * size.font**2, color=color, marker=marker, zorder=3, linewidths=0.9,
            edgecolors="black" if index in first else "white",
        )  # fmt: skip
        if final.half_width is not None:
            low, high = final.mean - final.half_width, final.mean + final.half_width
            axes.vlines(cost.mean, low, high, color=color, lw=1, zorder=1)
    known = [cost.mean for cost in costs if np.isfinite(cost.mean)]
    log_x = options.get("log_x")
    if log_x or (log_x is None and min(known) > 0 and max(known) > 10 * min(known)):
        axes.set_xscale("log")
    if options.get("log_y"):
        axes.set_yscale("log")
    place = sorted(first, key=lambda index: costs[index].mean)
    corners = np.array([[costs[index].mean, finals[index].mean] for index in place])
    if len(np.unique(corners, axis=0)) > 1:                # a line through one point cannot be seen
        (line,) = axes.step(*corners.T, where="post", color="0.45", lw=1.1, ls=(0, (4, 2)), zorder=2)
        legend["Pareto front"] = line
    if 1 < len(comparison.runs) <= NAMED:
        for index, (summary, cost, final) in enumerate(zip(comparison.runs, costs, finals, strict=True)):
            if np.isfinite([cost.mean, final.mean]).all():
                above = index in first                     # names on either side of the front seldom meet
                axes.annotate(
                    summary.run.label, (cost.mean, final.mean), xytext=(6, 6 if above else -6), zorder=4,
                    va="baseline" if above else "top", textcoords="offset points", fontsize=0.8 * size.font,
                    color="0.25",
                )  # fmt: skip
    axes.margins(0.12)
    if comparison.metric.startswith("accuracy"):           # with two seeds the interval is wide
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1.02))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    plain(axes, size)
    axes.set_xlabel(textwrap.fill(options.get("xlabel", AXES[x]), size.characters - 8), fontsize=size.font)
    axes.set_ylabel(options.get("ylabel", f"final {comparison.metric.replace('_', ' ')}"), fontsize=size.font)
    better = "lower" if comparison.lower else "higher"
    seeds = ", mean over seeds, bar: 95 % Student-t interval" * several(comparison)
    notes = (
        f"A point: a run at its end{seeds}. Better is {better}, and further"
        " left. Front (black edges): no other run is at least as good in both and better in one."
    )
    title = f"Final {comparison.metric.replace('_', ' ')} ({scopes_of(comparison)}) against {x.replace('_', ' ')}"
    frame(figure, size, options, title, legend, notes)
    return figure


def total(run: RunSeries, x: str) -> Estimate:
    """Total cost of a run, over its seeds."""
    return estimate([float(series.cost[x][-1]) for series in run.seeds.values()])


def front(costs: Sequence[float], values: Sequence[float], lower: bool) -> list[int]:
    """Indices of the points that no other one dominates: none is at least as good in both, and better in one."""
    points = [(cost, value if lower else -value) for cost, value in zip(costs, values, strict=True)]
    known = [index for index, point in enumerate(points) if np.isfinite(point).all()]
    return [
        index for index in known
        if not any(
            other != index and points[other] != points[index]
            and points[other][0] <= points[index][0] and points[other][1] <= points[index][1]
            for other in known
        )
    ]  # fmt: skip


def totals(comparison: Comparison) -> Mapping[str, list[float]]:
    """Total cost of each run by its name, of the costs that some run recorded."""
    every = {x: [total(summary.run, x).mean for summary in comparison.runs] for x in AXES}
    return {x: costs for x, costs in every.items() if np.isfinite(costs).any()}
