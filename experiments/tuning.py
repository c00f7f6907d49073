"""Settings chosen from a grid, without a look at the test set, and the comparison of what was chosen."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from experiments.pages import markdown
from fedsim import Evaluation, Experiment, run
from fedsim.cli.output import console
from fedsim.errors import DivergenceError, FedsimError
from fedsim.record.files import create_folder
from fedsim.report.compare import cells, compare, header
from fedsim.report.curves import curves
from fedsim.report.terminal import render

HELD = {"scope": "clients/holdout", "metric": "accuracy_weighted_mean"}


def main_of(name: str, grids: Mapping[str, Sequence[Any]], base: Experiment, root: Path) -> int:
    """Choose the setting of every method, run it on the seeds of ``base``, print the table, and write it and the curves
    to a new folder in ``root``, as ``table.md`` and ``accuracy.png``; returns the exit code.
    """
    try:
        folder = create_folder(root, name)
        chosen = {method: tuned(method, grid, base, folder / "tuning" / method) for method, grid in grids.items()}
        runs = [run(replace(base, algorithm=of).with_execution(name=m), root=folder) for m, of in chosen.items()]
        comparison = compare([r.path for r in runs])
        which = [described(grids[method], algorithm) for method, algorithm in chosen.items()]
        lines = [header(comparison), *cells(comparison)]
        rows = [[*row, setting] for row, setting in zip(lines, ["chosen", *which], strict=True)]
        (folder / "table.md").write_text(markdown(rows))
        console().print(render(comparison))
        curves(comparison, folder / "accuracy.png", x="megabytes")
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(f"Runs, table and curves: {folder}", highlight=False)
    return 0


def tuned(name: str, grid: Sequence[Any], base: Experiment, folder: Path) -> Any:
    """The algorithm of a grid that is best on a fifth of every client's samples, withheld from training, on the seeds
    100 and 101; those that diverge are out.

    Raises:
        DivergenceError: all diverge.
    """
    trial = replace(base, seed=100, seeds=2, evaluation=Evaluation(every=base.rounds, holdout=0.2))
    best, chosen = -math.inf, None
    for algorithm in grid:
        with contextlib.suppress(DivergenceError):
            made = run(replace(trial, algorithm=algorithm).with_execution(name=name), root=folder, progress=False)
            accuracy = compare(made.path, **HELD).runs[0].final.mean
            if accuracy > best:
                best, chosen = accuracy, algorithm
    if chosen is None:
        raise DivergenceError(f"{name} diverges with every setting of its grid")
    console().print(f"{name}: {described(grid, chosen)}; {best:.3f} on withheld samples", highlight=False)
    return chosen


def described(grid: Sequence[Any], algorithm: Any) -> str:
    """The setting that a grid decides, as "lr=0.3"."""
    varied = [f.name for f in fields(algorithm) if len({getattr(other, f.name) for other in grid}) > 1]
    return ", ".join(f"{field}={getattr(algorithm, field):g}" for field in varied)
