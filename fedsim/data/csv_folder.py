"""A folder of CSV files, one per client, and heart disease in that form.

Heart disease: Janosi, Steinbrunn, Pfisterer and Detrano, UCI Machine Learning Repository, 1988.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.data.sources import MissingDataError, Source, Store, read_text
from fedsim.data.splits import divide, encode_targets, fill_in, holdout, number_clients
from fedsim.errors import DataError

MISSING = {"", "?", "na", "nan"}
HEART_DISEASE = Source(
    title="heart disease",
    origin="https://archive.ics.uci.edu/dataset/45, its four processed files with a header line of the 14 column names",
    folder="heart_disease",
    files=dict.fromkeys(["cleveland.csv", "hungarian.csv", "switzerland.csv", "va_long_beach.csv"]),
)


class Table(NamedTuple):
    """One CSV file.

    Attributes:
        columns: names of the features.
        x: features ``[N, d]``, NaN where missing.
        labels: target of each row as written.
    """

    columns: list[str]
    x: NDArray[np.float64]
    labels: list[str]


def number(cell: str, where: str) -> float:
    """The number in a cell, NaN if it is missing."""
    if cell.strip().lower() in MISSING:
        return np.nan
    try:
        value = float(cell)
    except ValueError as error:
        raise DataError(f"{where}: {cell!r} is not a number; expected numbers (number categories first)") from error
    if not np.isfinite(value):
        raise DataError(f"{where}: {cell!r} is not finite; expected a finite number, or nothing where it is missing")
    return value


def read_table(path: Path, target: str | None) -> Table:
    """A CSV file with a header line; ``target`` names the label column, by default the last."""
    reader = csv.reader(read_text(path).splitlines(keepends=True), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; expected comma-separated values") from error
    if len(rows) < 2:
        raise DataError(f"{path}: {len(rows)} lines; expected a header line and at least one row")
    header = [name.strip() for name in rows[0][1]]
    target = header[-1] if target is None else target
    if header.count(target) != 1:
        raise DataError(f"{path}: columns {', '.join(header)}; expected one column {target!r} with the label")
    at = header.index(target)
    features, labels = [], []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} cells; expected {len(header)}, as in the header")
        label = row.pop(at).strip()
        if label.lower() in MISSING:
            raise DataError(f"{path}, line {line}: no label in column {target!r}; expected one in each row")
        labels.append(label)
        features.append([number(cell, f"{path}, line {line}") for cell in row])
    return Table([name for name in header if name != target], np.array(features), labels)


def numbers_or_strings(labels: list[str]) -> NDArray[Any]:
    """Labels as numbers if all of them are, else as strings."""
    try:
        return np.array(labels, dtype=np.float64)
    except ValueError:
        return np.array(labels)


def read_tables(
    paths: list[Path], target: str | None, regression: bool, standardize: bool, test_fraction: float, seed: int
) -> Dataset:
    """CSV files with the same columns, each a natural client named as the file."""
    tables = [read_table(path, target) for path in paths]
    expected = tables[0].columns
    for path, table in zip(paths, tables, strict=True):
        if table.columns != expected:
            raise DataError(f"{path}: features {table.columns}; expected {expected}, as in {paths[0].name}")
    labels = numbers_or_strings([label for table in tables for label in table.labels])
    targets = encode_targets(labels, paths[0].parent, regression)
    owner = np.repeat([path.stem for path in paths], [len(table.labels) for table in tables])
    test = holdout((np.zeros(len(owner)) if regression else targets.y, owner), test_fraction, seed, paths[0].parent)
    client, names = number_clients(owner, test)
    x = fill_in(np.concatenate([table.x for table in tables]), test, standardize)
    return Dataset("csv", *divide(x, targets.y, client, test), targets.classes, names, targets.label_names)


def csv_folder(
    path: str | Path,
    *,
    target: str | None = None,
    regression: bool = False,
    standardize: bool = True,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """A folder with one ``*.csv`` per natural client; features float32 ``[N, d]``, missing ones (empty, ?, NA) become
    the training mean.

    Args:
        path: the folder.
        target: name of the column that holds the labels; the last one by default.
        regression: whether targets are real numbers to be predicted, and no classes.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training samples.
        test_fraction: share of each class of each client that is held out for testing.
        seed: of the choice of test samples, whatever the run's seed is.
    """
    folder = Path(path).expanduser()
    if not (paths := sorted(folder.glob("*.csv"))):
        raise MissingDataError(f"{folder}: no *.csv; expected a folder with one CSV file per client")
    return read_tables(paths, target, regression, standardize, test_fraction, seed)


def heart_disease(store: Store, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """920 patients of four hospitals, 13 features; the target is the presence of heart disease (``num`` above 0)."""
    paths = list(store.find(HEART_DISEASE).values())
    data = read_tables(paths, "num", False, True, test_fraction, seed)
    train, test = (split._replace(y=(split.y > 0).long()) for split in (data.train, data.test))
    labels = ("no disease", "disease")
    return replace(data, name="heart_disease", train=train, test=test, classes=2, label_names=labels)
