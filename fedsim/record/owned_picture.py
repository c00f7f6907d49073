"""Picture of what clients own. Matplotlib is imported where it is used, because that takes a third of a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsim.record.owned import js_distance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 100
"""Number of clients up to which they are drawn one by one."""
MOST_NAMES, LONGEST_NAME = 20, 16
"""Classes and characters up to which the names of classes are shown."""
BLUE, GREY = "#2f6db3", "#555555"


def draw_owned(
    sizes: np.ndarray, counts: np.ndarray | None, whole: np.ndarray | None, title: str, names: Sequence[str] = ()
) -> Figure:
    """Draw who owns what: up to 100 clients one by one, more as histograms of sizes and of label skew.

    Args:
        sizes: ``[n]`` samples of each client.
        counts: ``[n, C]`` samples of each class; None if samples have no class.
        whole: ``[C]`` samples of each class in the whole data set.
        title: title above the panels.
        names: names of the classes; by default their numbers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2 if counts is None else 5.0), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=9, color=GREY)
    if len(sizes) > FEW:
        draw_histograms(figure, sizes, counts, whole)
    elif counts is None:
        draw_sizes(figure.subplots(), sizes)
    else:
        draw_clients(figure, sizes, counts, names)
    for axes in figure.axes:
        axes.tick_params(labelsize=8, colors=GREY)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    return figure


def legend(axes: Axes) -> None:
    """Name the mean above the panel, where the name hides nothing, and draw no frame."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=8, frameon=False, borderaxespad=0)
    axes.spines[["top", "right"]].set_visible(False)


def draw_sizes(axes: Axes, sizes: np.ndarray) -> None:
    """Bars: samples of each client, and their mean."""
    from matplotlib.ticker import MaxNLocator

    mean, n = sizes.mean(), len(sizes)
    axes.bar(np.arange(n), sizes, width=0.8, color=BLUE)
    axes.axhline(mean, color=GREY, linewidth=0.8, linestyle="--", label=f"mean {mean:,.1f}")
    axes.set(ylabel="samples", xlabel="client", xlim=(-0.5, n - 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    legend(axes)


def draw_clients(figure: Figure, sizes: np.ndarray, counts: np.ndarray, names: Sequence[str] = ()) -> None:
    """Sizes above a heat map of the share of each class in each client; the colour follows the root of the share."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.4])
    share = 100 * counts.T / np.maximum(1, sizes)
    x, y = np.arange(len(sizes) + 1) - 0.5, np.arange(len(share) + 1) - 0.5
    line = 0.4 if share.size <= 2500 else 0.0
    norm = PowerNorm(0.5, 0, 100)
    image = bottom.pcolormesh(x, y, share, cmap="Blues", norm=norm, edgecolors="white", linewidth=line)
    draw_sizes(top, sizes)
    top.set_xlabel("")
    bottom.set(xlabel="client", ylabel="class")
    bottom.invert_yaxis()
    if names and len(names) <= MOST_NAMES and max(map(len, names)) <= LONGEST_NAME:
        bottom.set_yticks(range(len(names)), names)
    else:
        bottom.yaxis.set_major_locator(MaxNLocator(min(20, len(share)), integer=True))
    bottom.tick_params(length=0)
    bottom.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=bottom, pad=0.01, aspect=20, ticks=[0, 1, 5, 10, 20, 40, 60, 80, 100])
    bar.set_label("share of the client's samples (%)")
    bar.outline.set_visible(False)


def draw_histograms(
    figure: Figure, sizes: np.ndarray, counts: np.ndarray | None, whole: np.ndarray | None
) -> None:
    """Distribution over clients of the sizes, and of the Jensen-Shannon distance where samples have classes."""
    width = 1 + int(np.ptp(sizes)) // 60                      # whole numbers of samples, so that no bin is favoured
    edges = np.arange(sizes.min(), sizes.max() + width + 1, width) - 0.5
    long_tail = sizes.min() > 0 and sizes.max() > 20 * np.median(sizes)
    if long_tail:
        edges = np.unique(np.geomspace(sizes.min(), sizes.max() + 1, 61).round()) - 0.5
    panels = [("samples per client", sizes, edges)]
    if counts is not None and whole is not None:
        distance = js_distance(counts, whole)
        name = "Jensen-Shannon distance of labels to the whole data set (0 is IID, 1 is the largest)"
        panels.append((name, distance[sizes > 0], np.linspace(0, 1, 61)))
    for axes, (name, values, bins) in zip(np.ravel(figure.subplots(len(panels), 1)), panels, strict=True):
        axes.hist(values, bins=bins, color=BLUE, edgecolor="white", linewidth=0.3)
        axes.axvline(values.mean(), color=GREY, linewidth=0.8, linestyle="--", label=f"mean {values.mean():,.3g}")
        axes.set(xlabel=name, ylabel="clients")
        legend(axes)
    if long_tail:
        figure.axes[0].set_xscale("log")
