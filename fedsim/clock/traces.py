"""Files of measured traces of devices: CSV, JSON and npz. Nothing is unpickled."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedsim.errors import ConfigError, DataError

SPEEDS = ("ms_per_sample", "down_kbps", "up_kbps")
WINDOWS = ("start_s", "end_s")


class TraceError(DataError, ConfigError):
    """A file of traces, a setting of the clock, is missing or is of another form."""


def read_speeds(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names of the clients, and for each ``[c]`` milliseconds of inference for a sample, kbit/s down and up.

    JSON is a list of rows, or a mapping from clients to rows; FedScale's names ``computation`` and ``communication``
    (both directions) are read as well.

    Raises:
        TraceError: the file is missing, is of another form, or has a client twice.
    """
    rows = _rows(path, SPEEDS)
    names = [str(row["client"]) for row in rows]
    if len({*names}) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise TraceError(f"{path} has client {name} {times} times; expected one row for each")
    ms, down, up = (_column(path, rows, name) for name in SPEEDS)
    return names, ms, down, up


def read_windows(path: Path, period: float | None) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    """Names of the clients, their windows ``[k, 2]`` in seconds, and the period ``[c]`` after which these repeat.

    JSON is a list of rows, or FLHetBench's mapping from clients to ``trace_start``, ``trace_end`` and ``ready_time``.

    Raises:
        TraceError: the file is missing or is of another form.
    """
    rows = _rows(path, WINDOWS)
    ends = _column(path, rows, "end_s")
    table = np.stack([_column(path, rows, "start_s"), ends], 1)
    own: dict[str, list[int]] = {}
    for k, row in enumerate(rows):
        own.setdefault(str(row["client"]), []).append(k)
    lengths = {str(row["client"]): float(row["period"]) for row in rows if "period" in row}
    windows = [table[places] for places in own.values()]
    periods = [
        period or lengths.get(name, float(part[:, 1].max())) for name, part in zip(own, windows, strict=True)
    ]
    return list(own), windows, np.array(periods)


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    expected = f"expected a .csv, .json or .npz file with the columns client, {', '.join(columns)}"
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                lists = {name: file[name].tolist() for name in file.files}
            if len({len(values) for values in lists.values()}) > 1:
                raise TraceError(f"{path} has columns of different lengths; {expected}")
            rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
        elif path.suffix == ".json":
            rows = _of_json(path, json.loads(path.read_text()))
        else:
            with path.open(newline="") as text:
                rows = list(csv.DictReader(text))
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}; {expected}") from error
    except TraceError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, BadZipFile, csv.Error) as error:
        kind = {".npz": "an npz file of arrays of numbers and text", ".json": "JSON"}.get(path.suffix, "CSV")
        why = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        why = f": an entry has no {error}" if isinstance(error, KeyError) else why
        raise TraceError(f"{path} cannot be read as {kind}{why}; {expected}") from error
    if not rows:
        raise TraceError(f"{path} has no rows; {expected}")
    for name in ("client", *columns):
        lacking = [k for k, row in enumerate(rows) if row.get(name) in (None, "")]
        if lacking:
            where = f" in {_row(rows, lacking[0])}" if any(name in row for row in rows) else ""
            raise TraceError(f"{path} has no {'value' if where else 'column'} {name}{where}; {expected}")
    return rows


def _row(rows: list[dict[str, Any]], k: int) -> str:
    """Name a row in an error, by its number and client."""
    client = rows[k].get("client")
    return f"row {k + 1}" + ("" if client in (None, "") else f", client {client}")


def _of_json(path: Path, content: Any) -> list[dict[str, Any]]:
    entries = content if isinstance(content, list) else content.values() if isinstance(content, dict) else [content]
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise TraceError(
                f"{path} has {entry!r:.40} as row {k + 1}; expected a list of rows, or a mapping from clients to rows,"
                ' such as {"client": "0", "ms_per_sample": 50}'
            )
    if isinstance(content, list):
        return [dict(row) for row in content]
    rows = []
    for client, entry in content.items():
        if "ready_time" in entry:
            first, period = entry["trace_start"], entry["trace_end"] - entry["trace_start"]
            spans = [(start - first, end - first) for start, end in entry["ready_time"]] or [(0, 0)]
            rows += [{"client": client, "start_s": a, "end_s": b, "period": period} for a, b in spans]
        elif "computation" in entry:
            speed = entry["communication"]
            rows.append(
                {"client": client, "ms_per_sample": entry["computation"], "down_kbps": speed, "up_kbps": speed}
            )
        else:
            rows.append({"client": client, **entry})
    return rows


def _column(path: Path, rows: list[dict[str, Any]], name: str) -> np.ndarray:
    values = np.empty(len(rows))
    for k, row in enumerate(rows):
        try:
            values[k] = float(row[name])
        except (TypeError, ValueError):
            raise TraceError(f"{path}, {_row(rows, k)}: {name} is {row[name]!r}; expected a number") from None
    return values
