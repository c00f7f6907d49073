"""Ribbons: the distribution of a metric over clients, by round.

Quantiles are taken over the clients that were measured in a round, for each seed, and then averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import IO, NamedTuple, Unpack

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.arrays import distinct, shared
from fedsim.errors import ConfigError
from fedsim.record import figures
from fedsim.record.rows import Key
from fedsim.report.compare import Comparison
from fedsim.report.curves import check_cost, several
from fedsim.report.layout import Options, frame, look, plain, sheet, size_of
from fedsim.report.recorded import OfClients, Recorded, costs_at
from fedsim.report.series import AXES, OF_CLIENTS

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""The edges of the outer and the inner ribbon, and the line in the middle."""
POINTS = 1000
"""Most points of a ribbon; a longer one is drawn at equidistant rounds."""
MOST_RUNS = 12
"""More panels than this are too small to read."""


class Ribbon(NamedTuple):
    """Quantiles over clients, as means over seeds.

    Attributes:
        x: costs ``[R]`` by name, means over seeds.
        value: quantiles ``[len(QUANTILES), R]``.
        clients: number ``[R]`` of clients that were measured, mean over seeds.
    """

    x: Mapping[str, np.ndarray]
    value: np.ndarray
    clients: np.ndarray


def ribbons(
    comparison: Comparison,
    path: Path | str | IO[bytes],
    x: str = "round",
    format: str | None = None,
    **options: Unpack[Options],
) -> None:
    """Draw the quantiles over clients of the metric of a comparison, a panel for each run.

    This is the metric of single clients that has the name of the comparison's metric, such as the accuracy of the
    server's model on each client's samples; see ``evaluation.clients_every``.

    Args:
        comparison: comparison of at most `MOST_RUNS` runs.
        path: file whose suffix names the format (png, svg, pdf), or an open binary file, with ``format``.
        x: the cost; see `fedsim.curves`.
        format: format for an open file.
        options: see `fedsim.report.layout.Options`; there is no target line.

    Raises:
        ConfigError: too many runs, or none has the metric of single clients.
    """
    figures.write(path, lambda: draw_ribbons(comparison, x, **options), format)


def draw_ribbons(comparison: Comparison, x: str = "round", **options: Unpack[Options]) -> Figure:
    """Return the figure of `ribbons`."""
    check_cost(x)
    size_of(options)
    runs = [summary.run for summary in comparison.runs]
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"ribbons of {len(runs)} runs are too small to read; choose up to {MOST_RUNS}")
    key = client_metric([run.recorded for run in runs], comparison.metric)
    figure, every, size = sheet(options, len(runs))
    for index, (axes, run) in enumerate(zip(every, runs, strict=True)):
        _draw(axes, ribbon_of(run.recorded, key), x, look(index)[0])
        axes.set_title(run.label, fontsize=size.font, loc="left")
        plain(axes, size)
        axes.set_xlabel(options.get("xlabel", x.replace("_", " ")), fontsize=size.font)
        axes.set_ylabel(options.get("ylabel", "" if index else key[1].replace("_", " ")), fontsize=size.font)
        if options.get("log_x"):
            axes.set_xscale("log")
        elif x == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = (end([axes.get_ylim()[place] for axes in every]) for place, end in ((0, min), (1, max)))
    for axes in every:                                     # on one scale, so that panels can be compared
        axes.set_ylim(low, high)
        if options.get("log_y"):
            axes.set_yscale("log")
    notes = (
        "Line: median over clients; bands: the inner 50 % and 80 % of clients (quantiles 25 to 75 % and 10 to 90 %)"
        f"{'; means over seeds' * several(comparison)}. Measured: {key[0]}."
    )
    frame(figure, size, options, f"{key[1].replace('_', ' ').capitalize()} of clients ({key[0]})", _legend(), notes)
    return figure


def client_metric(recorded: Sequence[Mapping[int, Recorded]], metric: str) -> Key:
    """Scope and name of this metric of single clients, in the first scope in which some run has it.

    Raises:
        ConfigError: no run has it.
    """
    known = {key for seeds in recorded for files in seeds.values() for key in files.clients}
    for scope in OF_CLIENTS:
        if (scope, metric) in known:
            return scope, metric
    there = ", ".join(" ".join(key) for key in sorted(known)) or "none"
    raise ConfigError(
        f"no run has {metric} of single clients (recorded of them: {there}); they are measured where"
        " evaluation.clients_every says"
    )


def ribbon_of(recorded: Mapping[int, Recorded], key: Key) -> Ribbon | None:
    """The ribbon of a run at the rounds that all its seeds have; None if a seed has no values."""
    seeds = [files for files in recorded.values() if key in files.clients]
    if not seeds or len(seeds) < len(recorded):
        return None
    rounds = reduce(shared, [distinct(files.clients[key].round) for files in seeds])         # a row for each client
    if not len(rounds):
        return None
    rounds = rounds[np.unique(np.linspace(0, len(rounds) - 1, POINTS).round().astype(int))]
    found = [_quantiles(files.clients[key], rounds) for files in seeds]
    costs = [costs_at(rounds, files.paid) for files in seeds]
    x = {name: np.mean([cost[name] for cost in costs], axis=0) for name in AXES}
    return Ribbon(x, np.mean([values for values, _ in found], axis=0), np.mean([count for _, count in found], axis=0))


def _quantiles(of: OfClients, rounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles ``[len(QUANTILES), R]`` of the finite values, and their number ``[R]``."""
    known = np.isfinite(of.value)
    order = np.argsort(of.round[known], kind="stable")
    sorted_rounds, values = of.round[known][order], of.value[known][order]
    start, end = (np.searchsorted(sorted_rounds, rounds, side) for side in ("left", "right"))
    made = np.full((len(QUANTILES), len(rounds)), np.nan)
    for row, (first, last) in enumerate(zip(start, end, strict=True)):
        if last > first:
            made[:, row] = np.quantile(values[first:last], QUANTILES)
    return made, end - start


def _draw(axes: Axes, ribbon: Ribbon | None, x: str, color: str) -> None:
    if ribbon is None or np.isnan(ribbon.x[x]).all():
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="0.4")
        return
    outer, inner, middle, upper, top = ribbon.value
    at = ribbon.x[x]
    if len(at) == 1:                                       # a band of one round has no width
        axes.vlines(at, outer, top, color=color, alpha=0.25, lw=7)
        axes.vlines(at, inner, upper, color=color, alpha=0.45, lw=7)
        axes.margins(x=0.5)
    axes.fill_between(at, outer, top, color=color, alpha=0.15, lw=0)
    axes.fill_between(at, inner, upper, color=color, alpha=0.3, lw=0)
    axes.plot(at, middle, color=color, lw=1.6, marker="o" if len(at) <= 25 else None, ms=3)


def _legend() -> dict[str, Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return {
        "median client": Line2D([], [], color="0.3", lw=1.6),
        "half of the clients": Patch(color="0.3", alpha=0.4, lw=0),
        "80 % of the clients": Patch(color="0.3", alpha=0.15, lw=0),
    }
