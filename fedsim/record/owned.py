"""What the clients of a seed own: how many samples, and how many of each class.

    partition.csv     client,samples,CLASS,CLASS,...: a line for each client; without classes only the first two columns
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.errors import RunError
from fedsim.record.files import write_atomic

FILE = "partition.csv"
MOST = 100_000
"""Number of clients above which no file is written."""


class Owned(NamedTuple):
    """Samples of the ``n`` clients of a seed.

    Attributes:
        sizes: ``[n]`` int64.
        counts: ``[n, C]`` int64, by class; None if samples have no class.
        classes: names of the classes.
    """

    sizes: np.ndarray
    counts: np.ndarray | None
    classes: Sequence[str]


def write_owned(seed: Path, owned: Owned) -> None:
    """Write the file of a seed, unless it has one or has too many clients."""
    path, n = seed / FILE, len(owned.sizes)
    if path.exists() or n > MOST:
        return
    columns = [np.arange(n)[:, None], owned.sizes[:, None], *([] if owned.counts is None else [owned.counts])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["client", "samples", *owned.classes])
    writer.writerows(np.concatenate(columns, axis=1).tolist())
    seed.mkdir(exist_ok=True)
    write_atomic(path, text.getvalue())


def read_owned(seed: Path) -> Owned | None:
    """Read the file of a seed; None if it has none.

    Raises:
        RunError: it is damaged.
    """
    path = seed / FILE
    if not path.is_file():
        return None
    try:
        head, *lines = csv.reader(path.read_text().splitlines())
        numbers = np.array(lines, np.int64)
        if head[:2] != ["client", "samples"] or numbers.shape != (len(lines), len(head)) or not len(lines):
            raise ValueError("expected client, samples and a column for each class")
    except (ValueError, OverflowError) as error:
        raise RunError(f"{path} cannot be read: {error}; restore it, or remove it") from error
    return Owned(numbers[:, 1], numbers[:, 2:] if len(head) > 2 else None, head[2:])


def js_distance(counts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance ``[n]`` (base 2) of rows ``counts [n, C]`` to ``whole [C]``; NaN for empty rows."""
    from scipy.spatial.distance import jensenshannon  # here, because importing it takes a third of a second

    distance = np.full(len(counts), np.nan)
    some = counts.sum(axis=1) > 0
    with np.errstate(invalid="ignore"):                # rounding can make the divergence of equal rows -1e-17
        distance[some] = np.nan_to_num(jensenshannon(counts[some], whole[None], base=2, axis=1))
    return distance
