"""Values of many clients: a file of columns for each round, instead of a line of ``metrics.jsonl`` for each value.

    clients/round-000120.npz     for each scope and metric the clients, int64 [k], and their values, float64 [k]
"""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedsim.errors import RunError
from fedsim.record.files import atomic, file_digest

FOLDER = "clients"
NODES = " nodes"
"""Suffix of the column that holds the clients to which the values of a column belong."""


def write_columns(seed: Path, round: int, rows: Iterable[tuple[str, int, str, float]], sha256: Any = None) -> None:
    """Write the values of a round, as rows of scope, client, metric and value, and add the file to a `columns_hash`."""
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
    if sha256 is not None:
        _add(sha256, _path(seed, round))


def columns_hash(seed: Path, last: float = math.inf) -> Any:
    """SHA-256 object of the names and the hashes of a seed's files, in order, up to the ``last`` round."""
    sha256 = hashlib.sha256()
    for path in _paths(seed):
        if _round(path) <= last:
            _add(sha256, path)
    return sha256


def _add(sha256: Any, path: Path) -> None:
    sha256.update(f"{path.name} {file_digest(path)}\n".encode())


def read_columns(seed: Path) -> list[tuple[tuple[str, str], int, np.ndarray, np.ndarray]]:
    """Scope and metric, round, clients ``[k]`` and values ``[k]`` of each column of a seed, by round.

    Raises:
        RunError: a file is damaged.
    """
    found: list[tuple[tuple[str, str], int, np.ndarray, np.ndarray]] = []
    for path in _paths(seed):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                columns = {name: file[name] for name in file.files}
            found += [_column(path, name, columns) for name in columns if not name.endswith(NODES)]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, NotImplementedError, zlib.error) as error:
            raise RunError(f"{path} is no file of columns ({error}); restore it, or repeat the run") from error
    return found


def _column(
    path: Path, name: str, columns: dict[str, np.ndarray]
) -> tuple[tuple[str, str], int, np.ndarray, np.ndarray]:
    scope, metric = name.rsplit(" ", 1)
    nodes, values = columns[name + NODES], columns[name]
    if nodes.ndim != 1 or nodes.shape != values.shape or nodes.dtype.kind != "i" or values.dtype.kind != "f":
        raise ValueError(f"column {name!r:.80} has values {values.dtype} {values.shape}, of clients {nodes.shape}")
    return (scope, metric), _round(path), nodes, values


def drop_columns(seed: Path, after: int) -> None:
    """Remove the files of rounds after this one."""
    for path in _paths(seed):
        if _round(path) > after:
            path.unlink()


def _paths(seed: Path) -> list[Path]:
    paths = (seed / FOLDER).glob("round-*.npz")
    return sorted(path for path in paths if path.stem.removeprefix("round-").isdecimal())


def _path(seed: Path, round: int) -> Path:
    return seed / FOLDER / f"round-{round:06d}.npz"


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
