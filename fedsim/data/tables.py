"""CSV tables of numbers with a header line, parsed strictly."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.data.sources import read_text
from fedsim.data.splits import REGRESS
from fedsim.errors import DataError, few, many, suggest

MISSING = {"", "?", "na", "nan"}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
INDEX_NAMES = re.compile(r"index|(row[ _]?)?id|row([ _]?names?|[ _]?number)?|unnamed: \d+", re.IGNORECASE)


class Table(NamedTuple):
    """One CSV file.

    Attributes:
        path: the file.
        columns: names of the features.
        target: name of the label column.
        x: features ``[N, d]``, NaN where missing.
        labels: target of each row as written.
        owners: client of each row, where a column names it.
        lines: line of each row in the file.
    """

    path: Path
    columns: list[str]
    target: str
    x: NDArray[np.float64]
    labels: list[str]
    owners: list[str]
    lines: list[int]


def read_table(path: Path, target: str | None, client: str | None = None) -> Table:
    """Read a CSV file with a header line.

    Args:
        path: the file; ``.gz`` is decompressed.
        target: the label column; by default the last that is not ``client``.
        client: the column with the client of each row, if there is one.

    Raises:
        DataError: not a table of numbers with a header, naming line and column.
    """
    text = read_text(path)
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; expected comma-separated values") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a header line and at least one row")
    header = [name.strip() for name in rows[0][1]]
    _check_header(f"{path}, line {rows[0][0]}", header, text.lstrip("\r\n").partition("\n")[0])
    if len(rows) < 2:
        raise DataError(f"{path}: 1 line; expected a header line and at least one row")
    special = [name for name in (client, target) if name is not None]
    for name, kind in ((client, "client"), (target, "label")):
        if name is not None and name not in header:
            raise DataError(f"{path} has no column {name!r} with the {kind}; {suggest(name, header)}")
    if target is None:
        target = next((name for name in reversed(header) if name not in special), "")
        special.append(target)
    columns = [name for name in header if name not in special]
    if not columns:
        raise DataError(
            f"{path}, line {rows[0][0]}: columns {few(header)}; expected at least one feature column beside the"
            " label, and commas between columns"
        )
    places = [k for k, name in enumerate(header) if name not in special]
    features, labels, owners = [], [], []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {many(len(row), 'cell')}; expected {len(header)}, as in the header")
        found = dict.fromkeys(special, "")
        for name in special:
            found[name] = row[header.index(name)].strip()
            if found[name].lower() in MISSING:
                kind = "client" if name == client else "label"
                raise DataError(f"{path}, line {line}: no {kind} in column {name!r}; expected one in each row")
        labels.append(found[target])
        owners.append(found.get(client or "", ""))
        features.append([number(row[k], path, line, header[k]) for k in places])
    lines = [line for line, _ in rows[1:]]
    table = Table(path, columns, target, np.array(features), labels, owners if client else [], lines)
    _check_index(table)
    return table


def number(cell: str, path: Path, line: int, column: str) -> float:
    """The number in a cell, NaN if it is missing."""
    cell = cell.strip()
    if cell.lower() in MISSING:
        return np.nan
    try:
        value = float(cell) if "_" not in cell else None
    except ValueError:
        value = None
    where = f"{path}, line {line}, column {column!r}"
    if value is None:
        hint = "write decimals with a point" if re.fullmatch(r"[-+]?\d+,\d+", cell) else "number categories first"
        raise DataError(f"{where}: {cell!r} is not a number; expected numbers ({hint})")
    if not np.isfinite(value):
        raise DataError(f"{where}: {cell!r} is not finite; expected a finite number, or nothing where it is missing")
    return value


def _check_header(where: str, header: list[str], line: str) -> None:
    """Raise `DataError` unless the cells of the first line are names of columns."""
    for separator, name in SEPARATORS.items():
        try:
            cells = next(csv.reader([line], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        if len(cells) > len(header):
            raise DataError(
                f"{where}: columns are separated by {name} ({separator!r}); expected commas: save it as comma-separated"
                f" values (pandas: read_csv(path, sep={separator!r}).to_csv(path, index=False))"
            )
    for k, name in enumerate(header, 1):
        if not name:
            index = "; if it is a row index, leave it out (pandas: to_csv(path, index=False))" if k == 1 else ""
            raise DataError(f"{where}: column {k} has no name; expected a name for every column{index}")
        if _value(name) is not None:
            raise DataError(
                f"{where}: column {k} is named {name!r}, a number; expected a header line: put one above the first row,"
                f" with names such as x{k}"
            )
    name, times = Counter(header).most_common(1)[0]
    if times > 1:
        places = " and ".join(str(k) for k, other in enumerate(header, 1) if other == name)
        raise DataError(f"{where}: columns {places} are both named {name!r}; expected different names")


def _check_index(table: Table) -> None:
    """Raise `DataError` if a feature is the number of the row."""
    for name, values in zip(table.columns, table.x.T, strict=True):
        if INDEX_NAMES.fullmatch(name) and len(values) > 1 and len(np.unique(values)) == len(values):
            raise DataError(
                f"{table.path}, column {name!r}: a different value in each row, which identifies the row; expected"
                " features: remove the column (pandas: to_csv(path, index=False)), or rename it if it is a feature"
            )


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def labels_of(tables: Sequence[Table], regression: bool) -> NDArray[Any]:
    """Labels of all rows of some tables, ``[N]``: numbers if all of them are, else strings.

    Raises:
        DataError: numbers and words are mixed, or words differ in case alone, so that one class would become two; for
            regression any word.
    """
    first: dict[str, str] = {}
    for table in tables:
        for label, line in zip(table.labels, table.lines, strict=True):
            first.setdefault(label, f"{label!r} ({table.path.name}, line {line})")
    numbers = [label for label in first if _value(label) is not None]
    words = [label for label in first if _value(label) is None]
    where = tables[0].path.parent if len(tables) > 1 else tables[0].path
    if regression and words:
        raise DataError(f"{where}: the target {first[words[0]]} is not a number; expected numbers for regression")
    if numbers and words:
        raise DataError(
            f"{where}: labels are numbers and words, such as {first[numbers[0]]} and {first[words[0]]}; expected the"
            " same notation of each class in all files"
        )
    for label in numbers if not regression else ():
        if not float(label).is_integer():
            raise DataError(f"{where}: label {first[label]} is not a whole number; expected class labels; {REGRESS}")
    seen: dict[str, str] = {}
    for word in words:
        if (other := seen.setdefault(word.casefold(), word)) != word:
            raise DataError(
                f"{where}: labels {first[other]} and {first[word]} differ in upper and lower case alone; expected the"
                " same notation of each class"
            )
    return np.array([label for table in tables for label in table.labels], dtype=np.str_ if words else np.float64)
