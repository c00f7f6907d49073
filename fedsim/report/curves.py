"""Curves of a comparison: mean over seeds with a 95 % Student-t band, against rounds, bytes, gradients or seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.errors import ConfigError, RunError, suggest
from fedsim.report.compare import Comparison
from fedsim.report.series import AXES, Series
from fedsim.report.statistics import estimate

# Okabe and Ito (2008), distinct under all common forms of colour blindness; without yellow, which is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")


class Curve(NamedTuple):
    """Mean and interval over seeds at ``R`` rounds.

    Attributes:
        x: ``[R]`` cost, the mean over seeds.
        mean: ``[R]``.
        half_width: ``[R]``; None for a single seed.
    """

    x: np.ndarray
    mean: np.ndarray
    half_width: np.ndarray | None


def curves(comparison: Comparison, path: Path | IO[bytes], x: str = "round", format: str | None = None) -> None:
    """Draw the metric of all runs against ``x`` into a file; equal bytes for equal runs.

    Args:
        comparison: what to draw.
        path: file, its ending names the format (png, svg, pdf), or an open binary file with ``format``.
        x: ``round``, ``megabytes``, ``megabytes_up``, ``paper_bits``, ``gradient_evaluations`` or ``seconds``.
        format: needed without a file name.

    Raises:
        ConfigError: unknown ``x`` or file format.
        RunError: no run recorded this cost.
    """
    plain = Path(path).suffix[1:] if isinstance(path, str | Path) else ""
    kind = format or plain
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    if kind not in metadata:
        raise ConfigError(f"cannot draw {str(path)!r}; expected a file name ending in .png, .svg or .pdf")
    with matplotlib.rc_context({"svg.hashsalt": "fedsim", "font.family": "DejaVu Sans"}):
        draw(comparison, x).savefig(path, format=kind, dpi=150, metadata=metadata[kind])


def draw(comparison: Comparison, x: str = "round") -> Figure:
    """The figure of `curves`."""
    if x not in AXES:
        raise ConfigError(f"x is {x!r}; {suggest(x, AXES)}")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    lines = {summary.run.label: curve_of(summary.run.seeds, x) for summary in comparison.runs}
    if all(np.isnan(curve.x).all() for curve in lines.values()):
        raise RunError(f"none of the runs recorded {x.replace('_', ' ')}; choose another x of {', '.join(AXES)}")
    for index, (label, curve) in enumerate(lines.items()):
        seeds = len(comparison.runs[index].run.seeds)
        name = f"{label} ({seeds} seed{'s' * (seeds > 1)})"
        _plot(axes, curve, name, PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)])
    _scale(axes, list(lines.values()))
    if comparison.target is not None:
        axes.axhline(comparison.target, color="0.4", lw=0.9, ls=(0, (4, 3)), label=f"target {comparison.target:g}")
    _decorate(axes, comparison, x)
    figure.supxlabel(_statement(comparison, x), fontsize=8, color="0.35", x=0.01, ha="left", linespacing=1.4)
    return figure


def curve_of(seeds: Mapping[int, Series], x: str) -> Curve:
    """Mean and interval at the rounds at which all seeds were evaluated."""
    by_round = [{round: row for row, round in enumerate(series.cost["round"].tolist())} for series in seeds.values()]
    rounds = sorted(set(by_round[0]).intersection(*by_round[1:]))
    rows = [[row[round] for round in rounds] for row in by_round]
    values = np.array([series.value[row] for series, row in zip(seeds.values(), rows, strict=True)])
    costs = np.array([series.cost[x][row] for series, row in zip(seeds.values(), rows, strict=True)])
    estimates = [estimate(column) for column in values.T.tolist()]
    widths = [math.nan if e.half_width is None else e.half_width for e in estimates]
    mean = np.array([e.mean for e in estimates])
    return Curve(costs.mean(axis=0), mean, np.array(widths) if len(seeds) > 1 else None)


def _plot(axes: Axes, curve: Curve, label: str, color: str, style: str) -> None:
    marker = "o" if len(curve.x) <= 25 else None
    axes.plot(curve.x, curve.mean, color=color, ls=style, lw=1.8, marker=marker, ms=3.5, label=label)
    if curve.half_width is not None:
        low, high = curve.mean - curve.half_width, curve.mean + curve.half_width
        axes.fill_between(curve.x, low, high, color=color, alpha=0.18, lw=0)


def _decorate(axes: Axes, comparison: Comparison, x: str) -> None:
    metric = comparison.metric.replace("_", " ")
    axes.set_title(f"{metric.capitalize()} ({comparison.scope})", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(AXES[x])
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    if comparison.metric.startswith("accuracy"):  # with two seeds the interval is wide, and no accuracy lies outside
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1))
    axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")


def _scale(axes: Axes, lines: list[Curve]) -> None:
    """Logarithmic when one run pays over ten times what another does, as compression saves by orders of magnitude."""
    totals = [curve.x[-1] for curve in lines if curve.x[-1] > 0]
    if totals and max(totals) > 10 * min(totals):
        axes.set_xscale("log", nonpositive="mask")
    else:
        axes.set_xlim(left=0)


def _statement(comparison: Comparison, x: str) -> str:
    """What the reader must know to judge the curves."""
    several = any(len(summary.run.seeds) > 1 for summary in comparison.runs)
    band = "Line: mean over seeds, band: 95 % Student-t interval (none for one seed)." if several else "No interval."
    at = "" if x == "round" else f"\nA point: one evaluated round, at the mean {x.replace('_', ' ')} of the seeds."
    return f"Measured: {comparison.scope}. {band}{at}"
