"""Settings chosen from a grid, without a look at the test set."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fedsim import Evaluation, Experiment, run
from fedsim.cli.output import console
from fedsim.errors import DivergenceError
from fedsim.report.compare import compare

HELD = {"scope": "clients/holdout", "metric": "accuracy_weighted_mean"}


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
