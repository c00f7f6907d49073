"""Tables and pictures of the pages that experiments write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedsim.cli.output import console
from fedsim.errors import FedsimError
from fedsim.record import figures
from fedsim.record.files import create_folder
from fedsim.report.layout import PALETTE
from fedsim.report.statistics import Estimate


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table(root: Path, name: str, measure: Callable[[Path], Sequence[Sequence[str]]]) -> int:
    """Let an experiment run in a new folder ``root/name``, print the table it returns, and keep it as ``table.md``.

    Returns:
        The exit code: 1 if an error of fedsim, which is printed, ended it.
    """
    try:
        folder = create_folder(root, name)
        text = markdown(measure(folder))
        (folder / "table.md").write_text(text)
        console().print(text, highlight=False)
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(f"Runs: {folder}", highlight=False)
    return 0


def intervals(
    values: Mapping[str, Mapping[str, Mapping[str, Estimate]]], label: str, path: Path
) -> None:
    """Draw means with their 95 % intervals side by side: by panel, colour, and place on the horizontal axis.

    Args:
        values: the estimates; all panels have the same colours.
        label: of the vertical axis, from 0 to 1.
        path: file; ``.png``, ``.svg`` or ``.pdf`` gives the format.
    """
    format = figures.format_of(path)
    figure = Figure(figsize=(3.0 * len(values) + 0.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, (title, series) in zip(panels, values.items(), strict=True):
        for k, (name, places) in enumerate(series.items()):
            x = [at + 0.7 * ((k + 0.5) / len(series) - 0.5) for at in range(len(places))]
            means, widths = ([value.mean for value in places.values()], [v.half_width or 0.0 for v in places.values()])
            axes.errorbar(x, means, widths, fmt="o", ms=4, lw=1.2, capsize=2, color=PALETTE[k], label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(places)), list(places), fontsize=9)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92", lw=0.8)
    panels[0].set_ylabel(label)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    with figures.style():
        figures.save(figure, path, format)
