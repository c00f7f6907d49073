"""Settings chosen from a grid, without a look at the test set, and the comparison of what was chosen."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from experiments.pages import markdown
from fedsim import Experiment, tune
from fedsim.cli.output import console
from fedsim.errors import FedsimError
from fedsim.record.files import create_folder
from fedsim.report.compare import cells, compare, header
from fedsim.report.curves import curves
from fedsim.report.terminal import render


def main_of(name: str, grids: Mapping[str, Sequence[Any]], base: Experiment, root: Path) -> int:
    """Choose the setting of every method on the seeds 100 and 101, run it on those of ``base``, print the table, and
    write it and the curves to a new folder in ``root``, as ``table.md`` and ``accuracy.png``; returns the exit code.
    """
    try:
        folder = create_folder(root, name)
        methods = {
            method: {described(grid, algorithm): replace(base, algorithm=algorithm) for algorithm in grid}
            for method, grid in grids.items()
        }
        tuned = tune(methods, folder, seed=100, seeds=2, jobs=1)
        comparison = compare(tuned.paths)
        lines = [header(comparison), *cells(comparison)]
        rows = [[*row, setting] for row, setting in zip(lines, ["chosen", *tuned.chosen.values()], strict=True)]
        (folder / "table.md").write_text(markdown(rows))
        console().print(render(comparison))
        curves(comparison, folder / "accuracy.png", x="megabytes")
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(f"Runs, table and curves: {folder}", highlight=False)
    return 0


def described(grid: Sequence[Any], algorithm: Any) -> str:
    """The setting that a grid decides, as "lr=0.3"."""
    varied = [f.name for f in fields(algorithm) if len({getattr(other, f.name) for other in grid}) > 1]
    return ", ".join(f"{field}={getattr(algorithm, field):g}" for field in varied) or "as given"
