"""A run directory: the resolved config, the manifest and the append-only metrics of every seed of one experiment.

    NAME/config.yaml                    the experiment, as plain YAML
    NAME/manifest.json                  versions, git commit, platform, hashes, seeds, status of every seed
    NAME/seed-0/metrics.jsonl           what the algorithm did: equal bytes for a repeated or resumed run
    NAME/seed-0/timing.jsonl            what differs from machine to machine (host seconds)
    NAME/seed-0/checkpoints/            see `fedsim.checkpoint`

A row is one strict JSON object a line: ``{"round": 3, "scope": "server/test", "node": null, "metric": "loss", "value":
0.31}``. JSON has no NaN, so a value that is not finite is written as ``null`` and read back as NaN. Rows reach the disk
once a round; a killed process leaves at most one line without its newline, which readers ignore and writers remove.
POSIX only (advisory locks keep a second process out of a seed that is being written).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import math
import mmap
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import yaml

from fedsim.errors import RunError

State = Literal["running", "finished", "failed", "interrupted"]
READ_BYTES = 2**24  # rows are parsed in blocks of this size, so that a file of millions of rows does not fill the memory


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

    def series(self, scope: str, metric: str) -> dict[int, float]:
        """Value by round, of the rows that belong to no client."""
        rows = (self.node == -1) & (self.scope == scope) & (self.metric == metric)
        return dict(zip(self.round[rows].tolist(), self.value[rows].tolist(), strict=True))


def read_metrics(path: Path) -> Metrics:
    """Read a metrics or timing file; a last line without newline (a killed writer) is ignored.

    Raises:
        RunError: the file is missing, or a complete line is not a row.
    """
    blocks: list[tuple[tuple[Any, ...], ...]] = []
    lines_read = 0
    try:
        with path.open("rb") as file:
            while lines := file.readlines(READ_BYTES):
                if not lines[-1].endswith(b"\n"):
                    lines.pop()
                blocks.append(_parse(lines, path, lines_read))
                lines_read += len(lines)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; expected the metrics of a run (NAME/seed-0/metrics.jsonl)") from error
    rounds, scopes, nodes, metrics, values = ([x for block in column for x in block] for column in _columns(blocks))
    return Metrics(
        np.array(rounds, np.int64),
        np.array(scopes, object),
        np.array([-1 if node is None else node for node in nodes], np.int64),
        np.array(metrics, object),
        np.array(values, np.float64),  # None becomes NaN
    )


def _columns(blocks: list[tuple[tuple[Any, ...], ...]]) -> Iterator[list[tuple[Any, ...]]]:
    return ([block[column] for block in blocks if block] for column in range(5))


def _parse(lines: list[bytes], path: Path, before: int) -> tuple[tuple[Any, ...], ...]:
    """Five columns of the given lines; one call of the JSON parser for all of them is what makes reading fast."""
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        intern = sys.intern  # one object a name, not one a row
        columns = [(r["round"], intern(r["scope"]), r["node"], intern(r["metric"]), r["value"]) for r in rows]
        return tuple(zip(*columns, strict=True))
    except (ValueError, KeyError, TypeError) as error:
        if len(lines) > 1:  # which line is it?
            for number, line in enumerate(lines):
                _parse([line], path, before + number)
        raise RunError(
            f"line {before + 1} of {path} is not a metric row ({error}); expected round, scope, node, metric, value. "
            "The file was changed after it was written: restore it, or repeat the run"
        ) from error


class RowWriter:
    """Appends rows to one file: `add` buffers, `flush` writes them and waits for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise RunError(f"{path} is being written by another process; wait for it, or stop it first") from error
        self.size = self._complete_bytes()
        os.ftruncate(self._fd, self.size)

    def _complete_bytes(self) -> int:
        """Bytes up to the end of the last complete line."""
        if not os.fstat(self._fd).st_size:  # an empty file cannot be mapped
            return 0
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as content:
            return content.rfind(b"\n") + 1

    def add(self, round: int, scope: str, metric: str, value: float, node: int | None = None) -> None:
        """Buffer one row; NaN and infinity become null."""
        finite = float(value) if math.isfinite(value) else None
        row = {"round": round, "scope": scope, "node": node, "metric": metric, "value": finite}
        self._lines.append(json.dumps(row, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Write the buffered rows and wait until they are on disk.

        Raises:
            RunError: the disk refused (full, gone); the file then ends with the last round that was written whole.
        """
        if not self._lines:
            return
        data = memoryview("".join(self._lines).encode())
        size = self.size + len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise RunError(self._refused(error)) from error
        self._lines.clear()
        self.size = size

    def _refused(self, error: OSError) -> str:
        rounds = read_metrics(self.path).round
        safe = f"all rows up to round {rounds.max()} are safe" if len(rounds) else "no rows had been written before"
        run = self.path.parent.parent
        return f"cannot write {self.path}: {error.strerror}; {safe}. Free some space, then: fedsim resume {run}"

    def truncate(self, size: int) -> None:
        """Remove everything after the first ``size`` bytes, and what is buffered."""
        ends_line = size == 0 or os.pread(self._fd, 1, size - 1) == b"\n"
        if not 0 <= size <= self.size or not ends_line:
            raise RunError(
                f"{self.path} holds {self.size} bytes, and its checkpoint was made when it held {size}: "
                "the file was changed since. Restore it, or repeat the run"
            )
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)
        self._lines.clear()
        self.size = size

    def truncate_after(self, round: int) -> None:
        """Remove the rows from the first one of a later round on, and what is buffered."""
        size = 0
        with self.path.open("rb") as file:
            for line in file:
                if json.loads(line)["round"] > round:
                    break
                size += len(line)
        self.truncate(size)

    def close(self) -> None:
        """Release the file; buffered rows are dropped."""
        os.close(self._fd)


class SeedRecord:
    """The files of one seed, open for writing. A context manager: leaving it without an error flushes.

    Write the rows of a round before its checkpoint, and give the checkpoint `offset`: a resumed run calls `truncate` with
    it, and goes on writing the same bytes that an uninterrupted run writes.

    Attributes:
        metrics: what the algorithm did.
        timing: what differs from machine to machine.
        checkpoints: directory for `fedsim.checkpoint`.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.checkpoints = directory / "checkpoints"
        self.metrics = RowWriter(directory / "metrics.jsonl")
        self.timing = RowWriter(directory / "timing.jsonl")

    def flush(self) -> None:
        """Write both files to disk; call it once a round."""
        self.metrics.flush()
        self.timing.flush()

    def offset(self) -> int:
        """Flush, and return the bytes of ``metrics.jsonl``."""
        self.flush()
        return self.metrics.size

    def truncate(self, offset: int, round: int) -> None:
        """Go back to the checkpoint of ``round`` that was made at ``offset``; ``(0, -1)`` is an empty record."""
        self.metrics.truncate(offset)
        self.timing.truncate_after(round)  # by round: its size differs from machine to machine, checkpoints do not

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.metrics.close()
            self.timing.close()


@dataclass(frozen=True)
class RunDirectory:
    """One experiment on disk.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved experiment."""
        config: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text())
        return config

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, hashes, seeds and status, as last written."""
        manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        return manifest

    def seed_path(self, seed: int) -> Path:
        """Directory of one seed."""
        return self.path / f"seed-{seed}"

    def open_seed(self, seed: int) -> SeedRecord:
        """Open the files of one seed for appending.

        Raises:
            RunError: another process is writing them.
        """
        return SeedRecord(self.seed_path(seed))

    def update_manifest(self, **entries: Any) -> None:
        """Replace entries of the manifest, atomically."""
        with self._locked():
            write_atomic(self.path / "manifest.json", _json(self.manifest | entries))

    def mark(self, seed: int, state: State, detail: str = "") -> None:
        """Set the status of one seed; ``detail`` is e.g. the error it failed with."""
        with self._locked():
            manifest = self.manifest
            manifest["status"][str(seed)] = {"state": state, "detail": detail}
            write_atomic(self.path / "manifest.json", _json(manifest))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Seeds may run in processes of their own, and each updates the one manifest."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
