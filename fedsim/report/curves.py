"""Curves of a comparison: mean over seeds with a 95 % Student-t band, against rounds, bytes, gradients or seconds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import IO, NamedTuple, Unpack

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.arrays import shared
from fedsim.errors import ConfigError, suggest
from fedsim.record import figures
from fedsim.record.directory import RunDirectory
from fedsim.report.compare import Comparison, compare, under
from fedsim.report.layout import Options, Size, frame, look, plain, sheet, size_of
from fedsim.report.series import AXES, OF_SOME, Series
from fedsim.report.statistics import estimates

WIDE = 30
"""Ratio of the largest to the smallest value from which the vertical axis is logarithmic."""


class Curve(NamedTuple):
    """Mean and interval over seeds at ``R`` rounds.

    Attributes:
        x: ``[R]`` costs, means over seeds.
        mean: ``[R]`` means of the metric.
        half_width: ``[R]`` half widths of their intervals; None for a single seed.
        paid_before: whether the initial model has a cost, such as an exchange before round 1.
    """

    x: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray | None
    paid_before: bool


def curves(
    comparison: Comparison | RunDirectory | Path | str | Sequence[RunDirectory | Path | str],
    path: Path | str | IO[bytes],
    x: str = "round",
    format: str | None = None,
    also: Sequence[str] = (),
    **options: Unpack[Options],
) -> None:
    """Draw the metric of all runs against ``x`` into a file; equal bytes for equal runs.

    Args:
        comparison: a comparison, whose metric is drawn, or runs, whose accuracy on the test set is drawn.
        path: file whose suffix names the format (png, svg, pdf), or an open binary file, with ``format``.
        x: ``round``, ``megabytes``, ``megabytes_up``, ``paper_bits``, ``gradient_evaluations``, ``seconds`` on the host
            or, of experiments with a clock, ``simulated_seconds``.
        format: format for an open file.
        also: further metrics, each in a panel of its own: names, or scope and name, as ``"clients/train loss_mean"``.
        options: title, size, axes, footnote and so on; see `Options`.

    Raises:
        ConfigError: unknown ``x``, metric, option or file format, a cost that no run recorded, or a logarithmic axis
            without a positive value.
    """

    def drawn() -> Figure:
        return draw(comparison if isinstance(comparison, Comparison) else compare(comparison), x, also, **options)

    figures.write(path, drawn, format)


def draw(comparison: Comparison, x: str = "round", also: Sequence[str] = (), **options: Unpack[Options]) -> Figure:
    """Return the figure of `curves`."""
    check_cost(x)
    size_of(options)
    shown = [comparison, *(under(comparison, name) for name in also)]
    lines = [{s.run.label: curve_of(s.run.seeds, x) for s in each.runs} for each in shown]
    for each, panel in zip(shown, lines, strict=True):
        _check_common(each.metric, panel)
    check_recorded(x, [curve.x for panel in lines for curve in panel.values()])
    figure, every, size = sheet(options, len(shown))
    legend: dict[str, Artist] = {}
    logs = [_panel(axes, each, panel, x, options, size, legend)
            for axes, each, panel in zip(every, shown, lines, strict=True)]  # fmt: skip
    metric = comparison.metric.replace("_", " ").capitalize()
    title = f"{metric} ({scopes_of(comparison)})"
    for axes, each in zip(every, shown, strict=True):
        if also:
            axes.set_title(f"{each.metric.replace('_', ' ')} ({scopes_of(each)})", fontsize=size.font, loc="left")
            axes.set_ylabel("")
    if also:
        title = ", ".join(dict.fromkeys(each.metric.replace("_", " ") for each in shown)).capitalize()
        for axes in every[: -len({axes.get_position().x0 for axes in every})]:
            axes.set_xlabel("")
    notes = _statement(shown, x, [curve for panel in lines for curve in panel.values()], logs)
    frame(figure, size, options, title, legend, notes)
    return figure


def check_cost(x: str) -> None:
    """Check that there is a horizontal axis of this name.

    Raises:
        ConfigError: there is none.
    """
    if x not in AXES:
        raise ConfigError(f"x is {x!r}; {suggest(x, AXES)}")


def check_recorded(x: str, values: Iterable[np.ndarray]) -> None:
    """Check that some run has recorded the cost of the horizontal axis.

    Raises:
        ConfigError: all ``values`` are NaN.
    """
    if all(np.isnan(each).all() for each in values):
        others = ", ".join(axis for axis in AXES if axis != x)
        raise ConfigError(f"none of the runs recorded {x.replace('_', ' ')}{OF_SOME.get(x, '')}; choose x of {others}")


def _check_common(metric: str, panel: Mapping[str, Curve]) -> None:
    for label, curve in panel.items():
        if not len(curve.x):
            raise ConfigError(
                f"{label}: there is no round in which {metric} was measured for all of its seeds, which ended after"
                " different ones; clients are measured more often with evaluation.clients_every"
            )


def _panel(
    axes: Axes, comparison: Comparison, lines: Mapping[str, Curve], x: str, options: Options, size: Size,
    legend: dict[str, Artist],
) -> tuple[bool, bool]:  # fmt: skip
    """Draw one metric, add to the legend, and return which axes are logarithmic."""
    log_x, log_y = scales(comparison.lower, list(lines.values()), options.get("log_x"), options.get("log_y"))
    counts = {label: len(summary.run.seeds) for label, summary in zip(lines, comparison.runs, strict=True)}
    for index, (label, curve) in enumerate(lines.items()):
        seeds = f" ({counts[label]} seed{'s' * (counts[label] > 1)})" if len(set(counts.values())) > 1 else ""
        color, style = look(index)
        line = _plot(axes, curve, f"{label}{seeds}", color, style, log_y, size.font / 9.5)
        legend.setdefault(f"{label}{seeds}", line)
        if curve.paid_before and not log_x:
            axes.plot([0, curve.x[0]], curve.mean[[0, 0]], color=color, lw=1, ls=(0, (1, 1.5)))
    goal = comparison.target if options.get("target_line") is not False else None
    if goal is not None and (goal > 0 or not log_y):
        line = axes.axhline(goal, color="0.4", lw=0.9, ls=(0, (4, 3)))
        legend.setdefault(f"target {_number(goal)}", line)
    _scale(axes, comparison, list(lines.values()), log_x, log_y, goal)
    plain(axes, size)
    axes.set_xlabel(textwrap.fill(options.get("xlabel", AXES[x]), size.characters - 8), fontsize=size.font)
    axes.set_ylabel(options.get("ylabel", comparison.metric.replace("_", " ")), fontsize=size.font)
    if x == "round" and axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return log_x, log_y


def curve_of(seeds: Mapping[int, Series], x: str) -> Curve:
    """Mean and interval at the rounds in which all seeds were evaluated; empty if there are none."""
    return curves_of(seeds, [x])[x]


def curves_of(seeds: Mapping[int, Series], axes: Iterable[str]) -> dict[str, Curve]:
    """`curve_of` against several costs."""
    rounds = [series.cost["round"] for series in seeds.values()]
    common = reduce(shared, rounds)                        # sorted, each once
    rows = [_rows_of(common, own) for own in rounds]
    values = np.array([series.value[row] for series, row in zip(seeds.values(), rows, strict=True)])
    mean, half = estimates(values)
    made = {}
    for x in axes:
        cost = np.mean([series.cost[x][row] for series, row in zip(seeds.values(), rows, strict=True)], axis=0)
        made[x] = Curve(cost, mean, half, len(common) > 0 and common[0] == 0 and bool(cost[0] > 0))
    return made


def _rows_of(rounds: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Row of each round in ``own``, whose last round may occur twice; the later row counts."""
    return np.searchsorted(own, rounds, side="right") - 1


def _plot(axes: Axes, curve: Curve, label: str, color: str, style: str, log: bool, scale: float) -> Artist:
    marker = "o" if len(curve.x) <= 25 else None
    mean = np.where(curve.mean > 0, curve.mean, np.nan) if log else curve.mean
    width, dot = 1.8 * scale, 3.5 * scale
    (line,) = axes.plot(curve.x, mean, color=color, ls=style, lw=width, marker=marker, ms=dot, label=label)
    if curve.half_width is not None:
        low, high = mean - curve.half_width, mean + curve.half_width
        low = np.where(low > 0, low, 1e-300) if log else low      # through the lower border of the axes
        axes.fill_between(curve.x, low, high, color=color, alpha=0.18, lw=0)
    return line


def scales(
    lower: bool, lines: Sequence[Curve], log_x: bool | None = None, log_y: bool | None = None
) -> tuple[bool, bool]:
    """Whether the axes are logarithmic, as chosen or else by the data.

    Raises:
        ConfigError: a logarithmic axis was chosen, but no value is positive.
    """
    totals = [curve.x[-1] for curve in lines if curve.x[-1] > 0]
    values = np.concatenate([curve.mean[np.isfinite(curve.mean)] for curve in lines])
    positive = values[values > 0]
    for name, chosen, some in (("log_x", log_x, totals), ("log_y", log_y, positive)):
        if chosen and not len(some):
            raise ConfigError(f"{name} is true, but no value is positive; leave it out")
    if log_x is None:
        log_x = bool(totals) and max(totals) > 10 * min(totals)
    if log_y is None:
        wide = len(positive) > 0 and values.max() >= WIDE * positive.min()
        rounding = wide and -values.min() < 1e-6 * values.max()  # a gap to an optimum may end a little below zero
        log_y = lower and rounding
    return log_x, bool(log_y)


def _scale(
    axes: Axes, comparison: Comparison, lines: list[Curve], log_x: bool, log_y: bool, target: float | None
) -> None:
    if log_x:
        axes.set_xscale("log", nonpositive="mask")
    else:
        axes.set_xlim(left=0)
    if log_y:
        axes.set_yscale("log", nonpositive="mask")
        ends = [target] if target is not None and target > 0 else []
        for curve in lines:
            mean = curve.mean[curve.mean > 0]
            width = 0 if curve.half_width is None else curve.half_width[curve.mean > 0]
            inner = (mean - width)[mean - width > mean / 10]     # a band may reach zero, which is infinitely far away
            ends += [*mean, *(mean + width), *inner]
        finite = [end for end in ends if math.isfinite(end)]
        axes.set_ylim(min(finite) / 1.3, max(finite) * 1.3)
    elif comparison.metric.startswith("accuracy"):  # with two seeds the interval is wide, and no accuracy lies outside
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1))


def _number(value: float) -> str:
    """A number for the legend, with a typeset power of ten instead of an exponent."""
    mantissa, _, exponent = f"{value:g}".partition("e")
    return rf"${mantissa} \times 10^{{{int(exponent)}}}$" if exponent else mantissa


def several(comparison: Comparison) -> bool:
    """Whether some run has several seeds."""
    return any(len(summary.run.seeds) > 1 for summary in comparison.runs)


def scopes_of(comparison: Comparison) -> str:
    """The scopes of all runs: the model and the samples of the metric."""
    return " or ".join(dict.fromkeys(summary.run.scope for summary in comparison.runs))


def _statement(
    shown: Sequence[Comparison], x: str, lines: Sequence[Curve], logs: Sequence[tuple[bool, bool]]
) -> str:
    """Explanation of lines and bands."""
    seeds = {len(summary.run.seeds) for each in shown for summary in each.runs}
    several = f"{max(seeds)} seeds" if len(seeds) == 1 else "seeds"
    band = f"Line: mean over {several}, band: 95 % Student-t interval{' (none for one seed)' * (1 in seeds)}."
    measured = [f"Measured: {scopes_of(shown[0])}."] if len(shown) == 1 else []
    parts = [*measured, band if max(seeds) > 1 else "One seed, no interval."]
    if x != "round":
        parts.append(f"A point: one evaluated round, at the mean {x.replace('_', ' ')} of the seeds.")
    log_x, log_y = (any(log[axis] for log in logs) for axis in (0, 1))
    if log_x and any(curve.x[0] <= 0 for curve in lines):
        parts.append("Round 0, which costs nothing, has no place on the logarithmic axis.")
    elif not log_x and any(curve.paid_before for curve in lines):
        parts.append("Dotted: paid before round 1, still with the initial model.")
    if log_y and any((curve.mean <= 0).any() for curve in lines):
        parts.append("Values of 0 and below have no place on the logarithmic axis.")
    return " ".join(parts)
