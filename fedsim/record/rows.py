"""Rows of metrics as columns: parsed from JSON Lines, millions in seconds.

The rows that `fedsim.record.metrics.RowWriter` writes have one form, which NumPy parses by the positions of commas and
line ends. A block with a row of any other form is left to the JSON parser.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedsim.errors import RunError

FORM = (b'{"round": ', b', "scope": ', b', "node": ', b', "metric": ', b', "value": ')
"""Text before each of the five values of a row; ``}`` ends the row."""
WIDEST = 64
"""Most bytes of a name or number; rows with longer ones are left to the JSON parser."""
DIGIT, NUMERIC = (np.isin(np.arange(256), np.frombuffer(of, np.uint8)) for of in (b"0123456789", b"0123456789+-.eE\0"))
"""Which bytes are digits, and which can be in a number or in the zeros that pad it."""
Key = tuple[str, str]
"""Scope and name of a metric."""


class MetricRows(NamedTuple):
    """Rows as columns of equal length ``[N]``, in the order they were written.

    Attributes:
        round: int64.
        node: int64 client, or -1 for a row that belongs to no client.
        key: int64 number of the scope and metric in ``keys``.
        value: float64; NaN for a value that was not finite.
        keys: distinct scopes and metrics, in the order of their first rows.
    """

    round: np.ndarray
    node: np.ndarray
    key: np.ndarray
    value: np.ndarray
    keys: tuple[Key, ...]


class RowParser:
    """Collects the rows of a file, block by block.

    Args:
        path: of the file, for errors.

    Attributes:
        lines: number of rows so far that were lines of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[Key, int] = {}
        self._blocks: list[tuple[np.ndarray, ...]] = []
        self.lines = 0

    def add(self, block: bytes) -> None:
        """Parse a block of complete lines.

        Raises:
            RunError: a line is not a row; says which.
        """
        if not block:
            return
        found = self._by_positions(block)
        if found is None:
            found = self._by_json(block.split(b"\n")[:-1], self.lines)
        self.lines += len(found[0])
        self._blocks.append(found)

    def add_columns(self, key: Key, round: int, nodes: np.ndarray, values: np.ndarray) -> None:
        """Add the values of many clients in one round."""
        count = len(nodes)
        self._blocks.append((np.full(count, round), nodes, np.full(count, self._number(key)), values))

    def rows(self) -> MetricRows:
        """All rows so far."""
        empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        round, node, key, value = (np.concatenate(column) for column in zip(empty, *self._blocks, strict=True))
        return MetricRows(round, node, key, value, tuple(self._keys))

    def _number(self, key: Key) -> int:
        return self._keys.setdefault(key, len(self._keys))

    def _by_json(self, lines: list[bytes], before: int) -> tuple[np.ndarray, ...]:
        """Parse any rows; a single call of the JSON parser makes this fast."""
        intern = sys.intern                                # one string per name, not per row
        try:
            rows = json.loads(b"[" + b",".join(lines) + b"]")
            return (
                np.array([row["round"] for row in rows], np.int64),
                np.array([-1 if row["node"] is None else row["node"] for row in rows], np.int64),
                np.array([self._number((intern(row["scope"]), intern(row["metric"]))) for row in rows], np.int64),
                np.array([row["value"] for row in rows], np.float64),   # None becomes NaN
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            if len(lines) > 1:                             # find the malformed line
                for number, line in enumerate(lines):
                    self._by_json([line], before + number)
            raise RunError(
                f"line {before + 1} of {self.path} is not a metric row ({error!r}); expected round, scope, node,"
                " metric, value. The file was changed after it was written: restore it, or repeat the run"
            ) from error

    def _by_positions(self, block: bytes) -> tuple[np.ndarray, ...] | None:
        """Parse rows of the usual form; None if a row has another."""
        data = np.frombuffer(block + bytes(WIDEST), np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        commas = np.flatnonzero(data == ord(","))
        if len(commas) != 4 * len(ends) or b"\0" in block:
            return None
        starts, cuts = np.concatenate([[0], ends[:-1] + 1]), list(commas.reshape(-1, 4).T)
        first, last = cuts[0], cuts[-1]
        if not (np.all(starts < first) and np.all(last < ends) and np.all(data[ends - 1] == ord("}"))):
            return None
        before = [starts, *cuts]
        values = [start + len(text) for start, text in zip(before, FORM, strict=True)]
        widths = [end - start for start, end in zip(values, [*cuts, ends - 1], strict=True)]
        if min(width.min() for width in widths) < 1 or max(width.max() for width in widths) > WIDEST:
            return None
        for start, text in zip(before, FORM, strict=True):
            if not np.all(_windows(data, start, len(text)) == np.frombuffer(text, np.uint8)):
                return None
        rounds = _integers(data, values[0], widths[0])
        nodes = _integers(data, values[2], widths[2], null=True)
        numbers = _floats(data, values[4], widths[4])
        if rounds is None or nodes is None or numbers is None:
            return None
        scopes, metrics = (_texts(data, values[place], widths[place]) for place in (1, 3))
        if scopes is None or metrics is None:
            return None
        pairs, first, inverse = np.unique(
            scopes[1] * len(metrics[0]) + metrics[1], return_index=True, return_inverse=True
        )
        known = np.empty(len(pairs), np.int64)
        for at in np.argsort(first):                       # in the order of the rows
            scope, metric = divmod(int(pairs[at]), len(metrics[0]))
            known[at] = self._number((scopes[0][scope], metrics[0][metric]))
        return rounds, nodes, known[inverse], numbers


def _windows(data: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """``[N, width]`` bytes from each of ``starts [N]`` on, a copy."""
    found: np.ndarray = np.lib.stride_tricks.sliding_window_view(data, width)[starts]
    return found


def _fields(data: np.ndarray, starts: np.ndarray, widths: np.ndarray, multiple: int = 1) -> np.ndarray:
    """``[N, W]`` bytes of fields, padded with zeros; W is a multiple of ``multiple``."""
    widest = -(-int(widths.max()) // multiple) * multiple
    fields = _windows(data, starts, widest)
    fields[np.arange(widest) >= widths[:, None]] = 0
    return fields


def _integers(data: np.ndarray, starts: np.ndarray, widths: np.ndarray, null: bool = False) -> np.ndarray | None:
    """Integers from 0 on, or -1 for null; None if a field is neither."""
    if int(widths.max()) > 18:
        return None
    fields = _fields(data, starts, widths, 4)
    absent = np.all(fields[:, :4] == np.frombuffer(b"null", np.uint8), axis=1) & (widths == 4) & null
    found = np.zeros(len(fields), np.int64)
    for place in range(int(widths.max())):
        within = (place < widths) & ~absent
        digit = fields[:, place].astype(np.int64) - ord("0")
        if not np.all((digit[within] >= 0) & (digit[within] <= 9)):
            return None
        found = np.where(within, 10 * found + digit, found)
    if np.any((fields[:, 0] == ord("0")) & (widths > 1)):
        return None
    return np.where(absent, -1, found)


def _floats(data: np.ndarray, starts: np.ndarray, widths: np.ndarray) -> np.ndarray | None:
    """Numbers, or NaN for null; None if a field is neither by JSON's grammar."""
    fields = _fields(data, starts, widths, 4)
    absent = np.all(fields[:, :4] == np.frombuffer(b"null", np.uint8), axis=1) & (widths == 4)
    fields[absent, :4] = np.frombuffer(b"0.0\0", np.uint8)
    rows, last = np.arange(len(fields)), np.where(absent, 3, widths) - 1
    sign = (fields[:, 0] == ord("-")).astype(np.int64)     # 1 for a minus
    first, second = (fields[rows, np.minimum(sign + k, last)] for k in (0, 1))
    if (
        not np.all(NUMERIC[fields])
        or not np.all(DIGIT[first] & DIGIT[fields[rows, last]])
        or np.any((first == ord("0")) & (last > sign) & DIGIT[second])
        or np.any((fields[:, :-1] == ord(".")) & ~DIGIT[fields[:, 1:]])
    ):
        return None
    try:
        numbers = np.ascontiguousarray(fields).view(f"S{fields.shape[1]}")[:, 0].astype(np.float64)
    except ValueError:
        return None
    numbers[absent] = np.nan
    return numbers


def _texts(data: np.ndarray, starts: np.ndarray, widths: np.ndarray) -> tuple[list[str], np.ndarray] | None:
    """Distinct strings, and the index ``[N]`` of each field among them; None if a field is not a string."""
    fields = _fields(data, starts, widths, 8)
    words = np.ascontiguousarray(fields).view(np.uint64)
    factors = 2 * np.random.Generator(np.random.Philox(0)).integers(2**62, size=words.shape[1], dtype=np.uint64) + 1
    _, first, inverse = np.unique((words * factors).sum(axis=1), return_index=True, return_inverse=True)
    if not np.all(fields == fields[first][inverse]):       # two strings with one hash
        return None
    try:
        texts = [json.loads(fields[row].tobytes().rstrip(b"\0")) for row in first]
    except ValueError:
        return None
    return (texts, inverse) if all(isinstance(text, str) for text in texts) else None
