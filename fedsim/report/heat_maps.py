"""Heat maps of numbers over two settings, in one or several panels. Drawn without pyplot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedsim.record import figures


def heat_maps(
    values: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str], path: Path
) -> None:
    """Draw a heat map for each entry of ``values [len(rows), len(columns)]``, on one scale from 0 to 1.

    Args:
        values: numbers by title of the panel; NaN is left white.
        rows, columns: labels of the ticks.
        labels: labels of the vertical and the horizontal axis.
        path: file whose suffix, ``.png``, ``.svg`` or ``.pdf``, names the format.

    Raises:
        ConfigError: another file format.
    """
    figures.write(path, lambda: draw_maps(values, rows, columns, labels))


def draw_maps(
    values: Mapping[str, np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    limits: tuple[float, float] | None = (0, 1),
    lower: bool = False,
    title: str = "",
    note: str = "",
) -> Figure:
    """The figure of `heat_maps`; with a title, the best cell of each panel is framed.

    Args:
        values, rows, columns, labels: see `heat_maps`.
        limits: limits of the colour scale; None for those of the values.
        lower: whether lower values are better and therefore brighter.
        title: title above the panels.
        note: text below the panels.
    """
    across = min(len(values), 4)
    down = math.ceil(len(values) / across)
    size = 1.1 + 0.7 * len(columns), 1.0 + 0.5 * len(rows)
    width, height = across * size[0] + 0.8, down * size[1] + 0.3 + 0.35 * bool(title) + 0.3 * bool(note)
    figure = Figure(figsize=(max(width, 3.4), height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    known = np.concatenate([numbers[np.isfinite(numbers)] for numbers in values.values()])
    low, high = limits or ((known.min(), known.max()) if len(known) else (0.0, 1.0))
    colors = matplotlib.colormaps["viridis_r" if lower else "viridis"]
    for ax, (name, numbers) in zip(axes, values.items(), strict=False):
        image = ax.imshow(numbers, vmin=low, vmax=high, cmap=colors, aspect="auto")
        ax.set_title(name, fontsize=9)
        ax.set_xticks(range(len(columns)), columns, fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.set_xlabel(labels[1], fontsize=8)
        ax.set_ylabel(labels[0], fontsize=8)
        for (i, j), number in np.ndenumerate(numbers):
            if not math.isnan(number):
                color = "w" if sum(colors(image.norm(number))[:3]) < 1.5 else "k"
                ax.text(j, i, _number(number), ha="center", va="center", fontsize=8, color=color)
        if title and np.isfinite(numbers).any():
            _frame_best(ax, numbers, lower)
    for ax in axes[len(values) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=axes.tolist(), fraction=0.03).ax.tick_params(labelsize=8)
    if title:
        title = textwrap.fill(title, int(10 * max(width, 3.4)))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    if note:
        figure.supxlabel(textwrap.fill(note, int(14 * max(width, 3.4))), fontsize=7.5, color="0.35", x=0.01, ha="left")
    return figure


def _frame_best(axes: Axes, numbers: np.ndarray, lower: bool) -> None:
    place = np.nanargmin(numbers) if lower else np.nanargmax(numbers)
    row, column = np.unravel_index(place, numbers.shape)
    axes.add_patch(Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, fill=False, ec="#D55E00", lw=2))


def _number(value: float) -> str:
    usual = 0.1 <= abs(value) < 1000 or value == 0
    return f"{value:.2f}" if usual else f"{value:.2g}"
