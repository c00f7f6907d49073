"""Heat maps of a sweep: the final metric over two settings that differ between runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fedsim.errors import ConfigError, suggest
from fedsim.record import figures
from fedsim.report.compare import Comparison
from fedsim.report.curves import scopes_of, several
from fedsim.report.heat_maps import draw_maps
from fedsim.report.labels import flat
from fedsim.report.series import RunSeries
from fedsim.report.statistics import best

METHOD = "algorithm.name"


class SweepMap(NamedTuple):
    """Final values over two settings.

    Attributes:
        rows, columns: name of a setting, and its values in order.
        panels: means over seeds ``[rows, columns]`` by method; the best one where several runs have the same two
            values, NaN where there is no run.
        further: other settings that differ.
    """

    rows: tuple[str, list[str]]
    columns: tuple[str, list[str]]
    panels: dict[str, np.ndarray]
    further: list[str]


def heat_map(
    comparison: Comparison,
    path: Path | str | IO[bytes],
    settings: Sequence[str] | None = None,
    format: str | None = None,
) -> None:
    """Draw the final metric of the runs of a sweep over two of their settings, a panel for each method.

    Args:
        comparison: comparison of the runs.
        path: file whose suffix names the format (png, svg, pdf), or an open binary file, with ``format``.
        settings: the vertical and the horizontal one, such as ``["local.epochs", "algorithm.lr"]``; by default those
            that differ, if they are two.
        format: format for an open file.

    Raises:
        ConfigError: not two settings differ, or unknown ones were chosen.
    """
    figures.write(path, lambda: draw_heat_map(comparison, settings), format)


def draw_heat_map(comparison: Comparison, settings: Sequence[str] | None = None) -> Figure:
    """Return the figure of `heat_map`."""
    made = map_of(comparison, settings)
    metric = comparison.metric.replace("_", " ")
    means = ["mean over seeds"] * several(comparison)
    bests = [f"the best over {', '.join(made.further)}"] * bool(made.further)
    cells = f"A cell: {'; '.join(means + bests)}. " if means + bests else ""
    better = "lower" if comparison.lower else "higher"
    note = f"{cells}{better.capitalize()} is better; framed: the best cell of each panel."
    return draw_maps(
        made.panels, made.rows[1], made.columns[1], (made.rows[0], made.columns[0]), None, comparison.lower,
        f"Final {metric} ({scopes_of(comparison)})", note,
    )  # fmt: skip


def map_of(comparison: Comparison, settings: Sequence[str] | None = None) -> SweepMap:
    """The numbers of `heat_map`."""
    runs = [summary.run for summary in comparison.runs]
    varied = varied_settings(runs)
    if settings is None:
        settings = [name for name in varied if name != METHOD]
        if len(settings) != 2:
            listed = ", ".join(settings) or "none"
            raise ConfigError(f"a heat map is over two settings; these differ: {listed}; choose two, by --settings")
    if len(settings) != 2 or len(set(settings)) < 2:
        raise ConfigError(f"settings are {', '.join(settings)}; expected two different ones")
    for name in settings:
        if name not in varied:
            raise ConfigError(f"{name} is no setting that differs between these runs; {suggest(name, list(varied))}")
    down, across = settings
    ticks = {name: in_order(varied[name]) for name in settings}
    split = METHOD in varied and METHOD not in settings
    methods = [in_words(value).rsplit(".", 1)[-1] for value in varied[METHOD]] if split else [""] * len(runs)
    panels = {m: np.full((len(ticks[down]), len(ticks[across])), math.nan) for m in dict.fromkeys(methods)}
    for place, summary in enumerate(comparison.runs):
        row, column = (ticks[name].index(in_words(varied[name][place])) for name in settings)
        cell = panels[methods[place]]
        cell[row, column] = best([cell[row, column], summary.final.mean], comparison.lower)
    further = [name for name in varied if name not in settings and not (split and name == METHOD)]
    return SweepMap((down, ticks[down]), (across, ticks[across]), panels, further)


def varied_settings(runs: Sequence[RunSeries]) -> dict[str, list[Any]]:
    """Settings that differ between runs and affect results, with the value of each run."""
    leaves = [dict(flat(run.config)) for run in runs]
    names = dict.fromkeys(name for settings in leaves for name in settings)
    values = {name: [settings.get(name) for settings in leaves] for name in names}
    return {
        name: of for name, of in values.items()
        if len(set(map(in_words, of))) > 1 and name.split(".")[0] not in ("execution", "name", "seed", "seeds")
    }  # fmt: skip


def in_order(values: Sequence[Any]) -> list[str]:
    """Distinct values as text: numbers by size, before words."""
    distinct: Mapping[str, Any] = {in_words(value): value for value in values}
    numbers = {text: value for text, value in distinct.items() if isinstance(value, int | float)}
    words = [text for text in distinct if text not in numbers]
    return [*sorted(numbers, key=lambda text: numbers[text]), *sorted(words)]


def in_words(value: Any) -> str:
    """A value of a setting, as on an axis."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)
