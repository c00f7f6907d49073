"""A comparison as a table for terminals and notebooks."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.jupyter import JupyterMixin
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedsim.report.compare import Comparison, cells, columns_of, header, notes, title

SPARE = ("gradient_evaluations", "best", "late", "megabytes", "seeds", "round", "difference")
"""Columns that are left out in a narrow terminal, the least important first."""


@dataclass(frozen=True)
class Rendering(JupyterMixin):
    """A comparison for a terminal or notebook, with the columns that fit and warnings below; `str` gives it as text."""

    comparison: Comparison
    columns: Sequence[str] | None = None

    def __str__(self) -> str:
        console = Console(file=io.StringIO())
        console.print(self)
        return cast(io.StringIO, console.file).getvalue().rstrip("\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Leave out columns, the least important first, until no word is broken; runs may wrap between words."""
        titles = columns_of(self.comparison, self.columns)
        kept, spare = list(titles), [name for name in SPARE if name in titles]
        while True:
            table = _table(header(self.comparison, kept), cells(self.comparison, kept))
            needed = Measurement.get(console, options.update(width=10_000), table).minimum
            if needed <= options.max_width or not spare:
                break
            kept.remove(spare.pop(0))
        yield Text(title(self.comparison), style="italic")
        yield table
        yield Text(notes(self.comparison, kept), style="dim")
        if len(kept) < len(titles):
            left_out = ", ".join(text for name, text in titles.items() if name not in kept)
            where = "see them in a wider terminal, or write all with fedsim compare --csv FILE"
            yield Text(f"Left out at {options.max_width} columns: {left_out}; {where}.", style="bold")
        for warning in self.comparison.warnings:
            yield Text(f"warning: {warning}", style="bold yellow")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for index, name in enumerate(names):
        words = " ".join(row[index] for row in rows).split(" ") if index == 0 else [row[index] for row in rows]
        heading = textwrap.fill(name, max(*map(cell_len, words), 8), break_long_words=False)
        least = max(map(cell_len, [*words, *heading.split("\n")]))
        table.add_column(Text(heading), justify="right" if index else "left", min_width=least, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def render(comparison: Comparison, columns: Sequence[str] | None = None) -> Rendering:
    """The comparison as a table for the terminal, with its warnings below; for `rich.print` and `print`.

    Args:
        columns: of `columns_of`, in the order to show; by default all that fit.

    Raises:
        ConfigError: no such column.
    """
    columns_of(comparison, columns)
    return Rendering(comparison, columns)
