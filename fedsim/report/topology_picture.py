"""A topology as a picture: nodes coloured by one number each, edges light. Drawn without pyplot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import matplotlib
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from scipy.sparse import csr_array

from fedsim.errors import ConfigError
from fedsim.record import figures

MOST_NODES = 1000
"""More nodes than this cannot be told apart in a picture."""
NAMED_NODES = 64
"""Number of nodes up to which they are named."""
LETTERS = 3
"""Length of a name up to which it is written in its node; longer ones are below."""
CIRCLES = ("Ring", "Exponential", "Complete", "OnePeerExponential", "RandomMatching")
GRIDS = ("Grid", "Torus")
BULGE = 0.4
"""Distance at which edges around a border pass other nodes, in units of the distance of neighbours."""
EDGE, INK, UNKNOWN = "#8a97a6", "#333333", "#dddddd"


def draw_graph(
    w: csr_array,
    kind: str,
    values: np.ndarray,
    label: str,
    title: str,
    path: Path | IO[bytes],
    names: Sequence[str] | None = None,
    format: str | None = None,
) -> None:
    """Draw the communication graph of a round into a file; equal bytes for equal arguments.

    Args:
        w: mixing matrix ``[n, n]``; where ``w_ij`` is not 0, j sends to i.
        kind: class of the graph or schedule, which determines the layout: a circle, a grid, or springs.
        values: ``[n]`` numbers that colour the nodes; NaN where there is none.
        label: label of the colour bar.
        title: title of the picture.
        path: file whose suffix names the format (png, svg, pdf), or an open binary file, with ``format``.
        names: names of the nodes; by default their numbers.
        format: format for an open file.

    Raises:
        ConfigError: another file format, or too many nodes.
    """
    kind_of_file = figures.kind_of(path, format)
    if w.shape[0] > MOST_NODES:
        raise ConfigError(f"a picture of {w.shape[0]:,} nodes shows nothing; draw up to {MOST_NODES:,}, or none")
    with figures.style():
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        axes = figure.add_subplot(aspect="equal", adjustable="datalim")
        places = positions(w, kind)
        _edges(axes, w, places, bent=kind == "Torus")
        _nodes(axes, places, values, label, names or list(map(str, range(len(places)))))
        lines = (textwrap.fill(line, 95, break_on_hyphens=False) for line in title.splitlines())
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, color=INK)
        axes.margins(0.1)
        axes.axis("off")
        figures.save(figure, path, kind_of_file)


def positions(w: csr_array, kind: str) -> np.ndarray:
    """Positions of the nodes, ``[n, 2]``."""
    n = w.shape[0]
    if kind in GRIDS:
        rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)   # the most square, as the graph is built
        i = np.arange(n)
        return np.stack([i % (n // rows), -(i // (n // rows))], axis=1).astype(float)
    if kind in CIRCLES:
        angle = 2 * np.pi * np.arange(n) / n
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)              # node 0 on top, then clockwise
    graph = nx.from_scipy_sparse_array(abs(w) + abs(w.T))
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    spots = nx.spring_layout(graph, seed=0, weight=None, iterations=200)
    return np.array([spots[i] for i in range(n)])


def _edges(axes: Axes, w: csr_array, places: np.ndarray, bent: bool) -> None:
    """Draw lines between nodes that send to each other, arrows for one-way links."""
    to, by = w.nonzero()
    mutual = np.asarray(w.T[to, by]).ravel() != 0
    lines = mutual & (by < to)
    alpha = float(np.clip(6 / math.sqrt(1 + len(to)), 0.15, 0.7))
    length = np.linalg.norm(places[to] - places[by], axis=1)
    bend = np.where(bent & (length > 1.5), BULGE / np.maximum(length, 1), 0.0)   # of a torus, around its border
    curves = _curves(places[by[lines]], places[to[lines]], bend[lines])
    axes.add_collection(LineCollection(list(curves), colors=EDGE, linewidths=1.0, alpha=alpha, zorder=1))
    size = _diameter(len(places))
    for i, j in zip(to[~mutual], by[~mutual], strict=True):
        arrow = FancyArrowPatch(
            tuple(places[j]), tuple(places[i]), arrowstyle="-|>", mutation_scale=9, shrinkA=size / 2, shrinkB=size / 2,
            connectionstyle="arc3,rad=0.08", color=EDGE, linewidth=0.8, alpha=alpha, zorder=1,
        )  # fmt: skip
        axes.add_patch(arrow)


def _curves(start: np.ndarray, end: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Quadratic curves ``[E, 17, 2]`` from ``start [E, 2]`` to ``end [E, 2]``, straight where ``bend [E]`` is 0."""
    across = (end - start)[:, ::-1] * [-1, 1]
    middle = (start + end) / 2 + 2 * bend[:, None] * across
    t = np.linspace(0, 1, 17)[None, :, None]
    curves: np.ndarray = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * middle[:, None] + t**2 * end[:, None]
    return curves


def _nodes(axes: Axes, places: np.ndarray, values: np.ndarray, label: str, names: Sequence[str]) -> None:
    n, size = len(places), _diameter(len(places))
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=UNKNOWN)
    dots = axes.scatter(
        places[:, 0], places[:, 1], c=values, cmap=colors, s=size**2, edgecolors="white", linewidths=0.8,
        zorder=2, plotnonfinite=True, clip_on=False,
    )  # fmt: skip
    bar = axes.figure.colorbar(dots, ax=axes, shrink=0.75, pad=0.02, aspect=25)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    if n > NAMED_NODES:
        return
    inside = max(map(len, names)) <= LETTERS
    for i, (place, name) in enumerate(zip(places, names, strict=True)):
        light = not inside or math.isnan(values[i]) or float(np.asarray(dots.norm(values[i]))) > 0.6
        axes.annotate(
            name, tuple(place), xytext=(0, 0 if inside else -size / 2 - 1), textcoords="offset points", ha="center",
            va="center" if inside else "top", fontsize=8 if inside else 7, color=INK if light else "white", zorder=3,
        )  # fmt: skip


def _diameter(n: int) -> float:
    """Diameter of a node in points."""
    return float(np.clip(90 / math.sqrt(n), 4, 22))
