"""Values of many clients: a file of columns for each round, in place of a line of ``metrics.jsonl`` for each value.

    clients/round-000120.npz     for each scope and metric the clients, int64 [k], and their values, float64 [k]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from fedsim.errors import RunError
from fedsim.record.files import atomic

FOLDER = "clients"
NODES = " nodes"
"""Ending of the name of the clients whose values a column has."""


def write_columns(seed: Path, round: int, rows: Iterable[tuple[str, int, str, float]]) -> None:
    """Write the values of a round, as rows of scope, client, metric and value."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for scope, node, metric, value in rows:
        nodes, values = columns.setdefault(f"{scope} {metric}", ([], []))
        nodes.append(node)
        values.append(value)
    if not columns:
        return
    arrays = {name: np.array(values, np.float64) for name, (_, values) in columns.items()}
    arrays |= {name + NODES: np.array(nodes, np.int64) for name, (nodes, _) in columns.items()}
    (seed / FOLDER).mkdir(exist_ok=True)
    with atomic(_path(seed, round)) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_columns(seed: Path) -> list[tuple[tuple[str, str], int, np.ndarray, np.ndarray]]:
    """Scope and metric, round, clients ``[k]`` and values ``[k]`` of each column of a seed, by round.

    Raises:
        RunError: a file is damaged.
    """
    found = []
    for path in _paths(seed):
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise RunError(f"{path} is no file of columns ({error}); restore it, or repeat the run") from error
        for name in [name for name in columns if not name.endswith(NODES)]:
            scope, metric = name.rsplit(" ", 1)
            found.append(((scope, metric), _round(path), columns[name + NODES], columns[name]))
    return found


def drop_columns(seed: Path, after: int) -> None:
    """Remove the files of rounds after this one."""
    for path in _paths(seed):
        if _round(path) > after:
            path.unlink()


def _paths(seed: Path) -> list[Path]:
    return sorted((seed / FOLDER).glob("round-*.npz"))


def _path(seed: Path, round: int) -> Path:
    return seed / FOLDER / f"round-{round:06d}.npz"


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
