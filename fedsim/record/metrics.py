"""Metric rows: JSON Lines in long format, append-only.

A row is one strict JSON object a line: ``{"round": 3, "scope": "server/test", "node": null, "metric": "loss", "value":
0.31}``. JSON has no NaN, so a value that is not finite is written as ``null`` and read back as NaN. Rows are flushed
once a round; a killed process leaves at most one line without its newline, which readers ignore and writers remove.
A writer follows the SHA-256 of the file, so that a checkpoint can hold it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import lock_descriptor

from fedsim.errors import BusyError, RunError
from fedsim.record.columns import read_columns
from fedsim.record.rows import MetricRows, RowParser

OF_NODES = ("clients/", "nodes/", "attackers/", "personal/", "tuned/", "unseen/", "unseen_tuned/")
"""Prefixes of scopes with a value for each client."""
READ_BYTES = 2**24
"""Bytes that are parsed at a time, since Python objects are far larger than the resulting columns."""


class Metrics(NamedTuple):
    """Rows as columns of equal length ``[N]``, in the order they were written.

    Attributes:
        round: int64.
        scope: str, e.g. ``server/test``.
        node: int64 client, or -1 for a row that belongs to no client.
        metric: str, e.g. ``accuracy``.
        value: float64; NaN for a value that was not finite.
    """

    round: np.ndarray
    scope: np.ndarray
    node: np.ndarray
    metric: np.ndarray
    value: np.ndarray

    def series(self, scope: str, metric: str, node: int | None = None) -> dict[int, float]:
        """Values by round of the client ``node``, by default those that belong to no client; a later row wins."""
        rows = (self.node == (-1 if node is None else node)) & (self.scope == scope) & (self.metric == metric)
        return dict(zip(self.round[rows].tolist(), self.value[rows].tolist(), strict=True))


def read_metrics(path: Path | str) -> Metrics:
    """Read a metrics or timing file; a last line without newline (a killed writer) is ignored.

    Values of clients that are in files of columns beside a metrics file follow its rows.

    Raises:
        RunError: the file is missing, a complete line is not a row, or a file of columns is damaged.
    """
    return _named(read_rows(path))


def read_rows(path: Path | str) -> MetricRows:
    """What `read_metrics` returns, with numbers for scopes and metrics."""
    return read_lines(path)[0]


def read_lines(path: Path | str) -> tuple[MetricRows, int]:
    """What `read_rows` returns, and how many of the rows are lines of the file; those of files of columns follow."""
    path = Path(path)
    parser = RowParser(path)
    _feed(parser, path, 0)
    for key, round, nodes, values in read_columns(path.parent) if path.name == "metrics.jsonl" else ():
        parser.add_columns(key, round, nodes, values)
    return parser.rows(), parser.lines


def read_after(path: Path | str, start: int) -> tuple[Metrics, int]:
    """Read the rows from byte ``start`` on, the beginning of a line; return them, and where the next ones will begin.

    Raises:
        RunError: see `read_metrics`; lines are counted from ``start``.
    """
    parser = RowParser(Path(path))
    end = _feed(parser, Path(path), start)
    return _named(parser.rows()), end


def _feed(parser: RowParser, path: Path, start: int) -> int:
    """Parse the complete lines from byte ``start`` on; return where they end."""
    rest = b""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(READ_BYTES):
                lines, newline, rest = (rest + data).rpartition(b"\n")
                parser.add(lines + newline)
                start += len(lines) + len(newline)
    except (FileNotFoundError, IsADirectoryError) as error:
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise RunError(f"{path} {wrong}; expected the metrics of a run (NAME/seed-0/metrics.jsonl)") from error
    return start


def _named(rows: MetricRows) -> Metrics:
    scopes, metrics = np.array([("", ""), *rows.keys], object).T[:, 1:]
    return Metrics(rows.round, scopes[rows.key], rows.node, metrics[rows.key], rows.value)


class RowWriter:
    """Appends rows to one file: `add` buffers, `flush` writes them and waits for the disk.

    Raises:
        BusyError: another process is writing the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if not lock_descriptor(self._fd, blocking=False):
            self.close()
            raise BusyError(f"{path} is being written by another process; wait for it, or stop it first")
        self.size = self._complete_bytes()
        os.ftruncate(self._fd, self.size)
        self._sha256 = self._hash_of(self.size)

    def _complete_bytes(self) -> int:
        """Bytes up to the end of the last complete line."""
        if not os.fstat(self._fd).st_size:  # an empty file cannot be mapped
            return 0
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as content:
            return content.rfind(b"\n") + 1

    def _hash_of(self, size: int) -> Any:
        """SHA-256 object of the first ``size`` bytes."""
        found, at = hashlib.sha256(), 0
        while data := os.pread(self._fd, min(READ_BYTES, size - at), at):
            found.update(data)
            at += len(data)
        return found

    def digest(self, size: int | None = None) -> str:
        """SHA-256 of the first ``size`` bytes; by default of all that has been written, which is known already."""
        found: str = (self._sha256 if size is None else self._hash_of(size)).hexdigest()
        return found

    def add(self, round: int, scope: str, metric: str, value: float, node: int | None = None) -> None:
        """Buffer one row; NaN and infinity become null."""
        finite = float(value) if math.isfinite(value) else None
        row = {"round": round, "scope": scope, "node": node, "metric": metric, "value": finite}
        self._lines.append(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Write the buffered rows; they survive the process, and after `sync` the machine.

        Raises:
            RunError: writing failed, as on a full disk; the file then ends with the last successful flush.
        """
        if not self._lines:
            return
        data = memoryview("".join(self._lines).encode())
        size, sha256 = self.size + len(data), self._sha256.copy()
        sha256.update(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise RunError(self._refused(error)) from error
        self._lines.clear()
        self.size, self._sha256 = size, sha256

    def sync(self) -> None:
        """Wait until all that was flushed is on disk.

        Raises:
            RunError: the system could not write it.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise RunError(self._refused(error)) from error

    def _refused(self, error: OSError) -> str:
        rounds = read_metrics(self.path).round
        safe = f"all rows up to round {rounds.max()} are safe" if len(rounds) else "no row had been written before"
        return f"cannot write {self.path}: {error.strerror}; {safe}"

    def ends_at(self, size: int) -> bool:
        """Whether a row ends after the first ``size`` bytes."""
        return size == 0 or (0 < size <= self.size and os.pread(self._fd, 1, size - 1) == b"\n")

    def truncate(self, size: int) -> None:
        """Remove everything after the first ``size`` bytes, and the buffered rows.

        Raises:
            RunError: the file is shorter than that, or the cut would go through a row.
        """
        if not self.ends_at(size):
            raise RunError(
                f"cannot cut {self.path} to {size} bytes: it holds {self.size}, and a row must end there. "
                "The file was changed after its checkpoint was made: restore it, or repeat the run"
            )
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)
        self._lines.clear()
        self.size, self._sha256 = size, self._hash_of(size)

    def truncate_after(self, round: int) -> None:
        """Remove everything from the first row of a later round on, and the buffered rows."""
        later = np.flatnonzero(read_metrics(self.path).round > round)
        if len(later):
            with self.path.open("rb") as file:
                self.truncate(sum(len(file.readline()) for _ in range(later[0])))
        self._lines.clear()

    def close(self) -> None:
        """Close the file; rows that were not flushed are dropped."""
        os.close(self._fd)
