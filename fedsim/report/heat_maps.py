"""Heat maps of numbers over two settings, one for each of several things compared. Drawn without pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedsim.record import figures


def heat_maps(
    values: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str], path: Path
) -> None:
    """Draw a heat map for each entry of ``values [len(rows), len(columns)]``, on one scale from 0 to 1.

    Args:
        values: numbers by title; NaN is left white.
        rows, columns: ticks.
        labels: of the vertical and the horizontal axis.
        path: file; ``.png``, ``.svg`` or ``.pdf`` gives the format.

    Raises:
        ConfigError: another file format.
    """
    format = figures.format_of(path)
    across = min(len(values), 4)
    down = math.ceil(len(values) / across)
    size = 1.1 + 0.7 * len(columns), 1.0 + 0.5 * len(rows)
    figure = Figure(figsize=(across * size[0] + 0.8, down * size[1] + 0.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for ax, (title, numbers) in zip(axes, values.items(), strict=False):
        image = ax.imshow(numbers, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        ax.set_title(title, fontsize=9)
        ax.set_xticks(range(len(columns)), columns, fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.set_xlabel(labels[1], fontsize=8)
        ax.set_ylabel(labels[0], fontsize=8)
        for (i, j), number in np.ndenumerate(numbers):
            if not math.isnan(number):
                ax.text(j, i, f"{number:.2f}", ha="center", va="center", fontsize=8, color="w" if number < 0.6 else "k")
    for ax in axes[len(values) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=axes.tolist(), fraction=0.03)
    with figures.style():
        figures.save(figure, path, format)
