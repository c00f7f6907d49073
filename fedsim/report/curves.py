"""Curves of a comparison: mean over seeds with a 95 % Student-t band, against rounds, bytes, gradients or seconds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from numbers import Real
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.errors import ConfigError, RunError, suggest
from fedsim.record import figures
from fedsim.record.directory import RunDirectory
from fedsim.report.compare import Comparison, compare
from fedsim.report.series import AXES, Series
from fedsim.report.statistics import estimates

# Okabe and Ito (2008), distinct under all common forms of colour blindness; without yellow, which is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")


class Size(NamedTuple):
    """Of a figure without its legend: inches, and points of the font."""

    width: float
    height: float
    font: float


SIZES = {"column": Size(3.4, 2.3, 7.0), "page": Size(7.0, 4.0, 9.5)}
MOST_COLUMNS = 8
"""Of a legend; to see whether so many fit takes time."""
WIDE = 30
"""Quotient of the largest and the smallest value from which the vertical axis is logarithmic."""


class Curve(NamedTuple):
    """Mean and interval over seeds at ``R`` rounds.

    Attributes:
        x: ``[R]`` cost, the mean over seeds.
        mean: ``[R]``.
        half_width: ``[R]``; None for a single seed.
        paid_before: the initial model has a cost, as of an exchange before round 1.
    """

    x: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray | None
    paid_before: bool


class Options(TypedDict, total=False):
    """Options of a figure; whatever is left out is chosen by the data.

    Attributes:
        title: above the legend; "" for none.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.
        footnote: below the axes, instead of the explanation of lines and bands; "" for none, as under a caption.
        width: ``column`` (3.4 inches) or ``page`` (7 inches), the usual widths of journals, with fonts to suit.
        height: inches of the whole figure; by default the axes keep their height, and the legend adds to it.
        log_x: logarithmic horizontal axis; by default where one run pays over ten times what another does.
        log_y: logarithmic vertical axis; by default where the metric is positive and spans a factor of `WIDE` or more.
        target_line: draw the target that costs are counted to; True by default.
    """

    title: str
    xlabel: str
    ylabel: str
    footnote: str
    width: Literal["column", "page"]
    height: float
    log_x: bool | None
    log_y: bool | None
    target_line: bool | None


def curves(
    comparison: Comparison | RunDirectory | Path | str | Sequence[RunDirectory | Path | str],
    path: Path | str | IO[bytes],
    x: str = "round",
    format: str | None = None,
    **options: Unpack[Options],
) -> None:
    """Draw the metric of all runs against ``x`` into a file; equal bytes for equal runs.

    Args:
        comparison: runs to draw: a comparison of one metric, or the runs, whose accuracy on the test set is drawn.
        path: file, its ending names the format (png, svg, pdf), or an open binary file with ``format``.
        x: ``round``, ``megabytes``, ``megabytes_up``, ``paper_bits``, ``gradient_evaluations``, ``seconds`` on the host
            or, of experiments with a clock, ``simulated_seconds``.
        format: needed without a file name.
        options: title, size, axes, footnote and so on; see `Options`.

    Raises:
        ConfigError: unknown ``x``, option or file format, or a logarithmic axis without a positive value.
        RunError: no run recorded this cost.
    """
    kind = format or figures.format_of(path if isinstance(path, str | Path) else "")
    compared = comparison if isinstance(comparison, Comparison) else compare(comparison)
    with figures.style():
        figures.save(draw(compared, x, **options), path, kind)


def draw(comparison: Comparison, x: str = "round", **options: Unpack[Options]) -> Figure:
    """Return the figure of `curves`."""
    if x not in AXES:
        raise ConfigError(f"x is {x!r}; {suggest(x, AXES)}")
    for name in options.keys() - Options.__annotations__.keys():
        raise ConfigError(f"unknown option {name} of a figure: {suggest(name, list(Options.__annotations__))}")
    width = options.get("width", "page")
    if width not in SIZES:
        raise ConfigError(f"width is {width!r}; {suggest(width, SIZES)}")
    if not (isinstance(height := options.get("height", 1.0), Real) and 0 < height <= 100):
        raise ConfigError(f"height is {height!r}; expected inches above 0, at most 100")
    lines = {summary.run.label: curve_of(summary.run.seeds, x) for summary in comparison.runs}
    if all(np.isnan(curve.x).all() for curve in lines.values()):
        raise RunError(f"none of the runs recorded {x.replace('_', ' ')}; choose another x of {', '.join(AXES)}")
    size = SIZES[width]
    figure = Figure(figsize=(size.width, options.get("height", size.height)), layout="constrained")
    axes = figure.add_subplot()
    log_x, log_y = scales(comparison.lower, list(lines.values()), options.get("log_x"), options.get("log_y"))
    counts = {label: len(summary.run.seeds) for label, summary in zip(lines, comparison.runs, strict=True)}
    for index, (label, curve) in enumerate(lines.items()):
        seeds = f" ({counts[label]} seed{'s' * (counts[label] > 1)})" if len(set(counts.values())) > 1 else ""
        color, style = look(index)
        _plot(axes, curve, f"{label}{seeds}", color, style, log_y, size.font / 9.5)
        if curve.paid_before and not log_x:
            axes.plot([0, curve.x[0]], curve.mean[[0, 0]], color=color, lw=1, ls=(0, (1, 1.5)))
    goal = comparison.target if options.get("target_line") is not False else None
    if goal is not None and (goal > 0 or not log_y):
        axes.axhline(goal, color="0.4", lw=0.9, ls=(0, (4, 3)), label=f"target {_number(goal)}")
    _scale(axes, comparison, list(lines.values()), log_x, log_y, goal)
    notes = _statement(comparison, x, list(lines.values()), set(counts.values()), log_x, log_y)
    _words(figure, axes, comparison, x, options, size, notes)
    return figure


def look(index: int) -> tuple[str, str]:
    """Colour and dashes of the run at this place of a comparison, the same in every picture of it."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def curve_of(seeds: Mapping[int, Series], x: str) -> Curve:
    """Mean and interval at the rounds at which all seeds were evaluated."""
    return curves_of(seeds, [x])[x]


def curves_of(seeds: Mapping[int, Series], axes: Iterable[str]) -> dict[str, Curve]:
    """The same against several costs."""
    rounds = [series.cost["round"] for series in seeds.values()]
    common = reduce(np.intersect1d, rounds)                # sorted, each once
    rows = [_rows_of(common, own) for own in rounds]
    values = np.array([series.value[row] for series, row in zip(seeds.values(), rows, strict=True)])
    mean, half = estimates(values)
    made = {}
    for x in axes:
        cost = np.mean([series.cost[x][row] for series, row in zip(seeds.values(), rows, strict=True)], axis=0)
        made[x] = Curve(cost, mean, half, common[0] == 0 and bool(cost[0] > 0))
    return made


def _rows_of(rounds: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Row of each round in ``own``, which may end with a round twice, of which the later counts."""
    return np.searchsorted(own, rounds, side="right") - 1


def _plot(axes: Axes, curve: Curve, label: str, color: str, style: str, log: bool, scale: float) -> None:
    marker = "o" if len(curve.x) <= 25 else None
    mean = np.where(curve.mean > 0, curve.mean, np.nan) if log else curve.mean
    axes.plot(curve.x, mean, color=color, ls=style, lw=1.8 * scale, marker=marker, ms=3.5 * scale, label=label)
    if curve.half_width is not None:
        low, high = mean - curve.half_width, mean + curve.half_width
        low = np.where(low > 0, low, 1e-300) if log else low      # through the lower border of the axes
        axes.fill_between(curve.x, low, high, color=color, alpha=0.18, lw=0)


def scales(
    lower: bool, lines: Sequence[Curve], log_x: bool | None = None, log_y: bool | None = None
) -> tuple[bool, bool]:
    """Logarithmic axes, as chosen or by the data.

    Raises:
        ConfigError: chosen, but nothing is positive.
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


def _words(
    figure: Figure, axes: Axes, comparison: Comparison, x: str, options: Options, size: Size, notes: str
) -> None:
    """Title and legend above the axes, where they hide nothing; labels; the footnote below."""
    metric, small = comparison.metric.replace("_", " "), 0.85 * size.font
    characters = int(size.width * 72 / (0.53 * size.font))       # in a line, about
    axes.set_xlabel(textwrap.fill(options.get("xlabel", AXES[x]), characters - 8), fontsize=size.font)
    axes.set_ylabel(options.get("ylabel", metric), fontsize=size.font)
    axes.tick_params(which="both", labelsize=size.font)
    if x == "round" and axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    footnote = textwrap.fill(options.get("footnote", notes), int(characters / 0.85))
    if footnote:
        figure.supxlabel(footnote, fontsize=small, color="0.35", x=0.01, ha="left", linespacing=1.3)
    title = textwrap.fill(options.get("title", f"{metric.capitalize()} ({_scopes(comparison)})"), characters - 4)
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, characters - 8) for label in labels]
    for columns in range(min(len(labels), MOST_COLUMNS), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, fontsize=0.9 * size.font, frameon=False,
            title=title, title_fontproperties={"weight": "bold", "size": 1.1 * size.font}, alignment="left",
            borderpad=0.2, handlelength=2.2, columnspacing=1.5,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= 0.98 * figure.bbox.width:
            break
        legend.remove()
    if "height" not in options:
        figure.set_figheight(size.height + legend.get_window_extent().height / figure.dpi)


def _number(value: float) -> str:
    """A number as on an axis: 6.4e-09 is 6.4 · 10 to the power of -9, typeset."""
    mantissa, _, exponent = f"{value:g}".partition("e")
    return rf"${mantissa} \times 10^{{{int(exponent)}}}$" if exponent else mantissa


def _scopes(comparison: Comparison) -> str:
    return " or ".join(dict.fromkeys(summary.run.scope for summary in comparison.runs))


def _statement(comparison: Comparison, x: str, lines: list[Curve], seeds: set[int], log_x: bool, log_y: bool) -> str:
    """Explanation of lines and bands."""
    several = f"{max(seeds)} seeds" if len(seeds) == 1 else "seeds"
    band = f"Line: mean over {several}, band: 95 % Student-t interval{' (none for one seed)' * (1 in seeds)}."
    parts = [f"Measured: {_scopes(comparison)}.", band if max(seeds) > 1 else "One seed, no interval."]
    if x != "round":
        parts.append(f"A point: one evaluated round, at the mean {x.replace('_', ' ')} of the seeds.")
    if log_x and any(curve.x[0] <= 0 for curve in lines):
        parts.append("Round 0, which costs nothing, has no place on the logarithmic axis.")
    elif not log_x and any(curve.paid_before for curve in lines):
        parts.append("Dotted: paid before round 1, still with the initial model.")
    if log_y and any((curve.mean <= 0).any() for curve in lines):
        parts.append("Values of 0 and below have no place on the logarithmic axis.")
    return " ".join(parts)
