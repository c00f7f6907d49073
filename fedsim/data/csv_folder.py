"""CSV files, one per client or one with a client column, and heart disease in the first form.

Heart disease: Janosi, Steinbrunn, Pfisterer and Detrano, UCI Machine Learning Repository, 1988.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.data.sources import MissingDataError, Source, Store, user_path
from fedsim.data.splits import divide, encode_targets, fill_in, holdout, in_order, number_clients
from fedsim.data.tables import labels_of, read_table
from fedsim.errors import DataError

HEART_DISEASE = Source(
    title="heart disease",
    origin="https://archive.ics.uci.edu/dataset/45, its four processed files with a header line of the 14 column names",
    folder="heart_disease",
    files=dict.fromkeys(["cleveland.csv", "hungarian.csv", "switzerland.csv", "va_long_beach.csv"]),
)


def read_tables(
    paths: list[Path],
    target: str | None,
    regression: bool,
    standardize: bool,
    test_fraction: float,
    seed: int,
    client: str | None = None,
    file_is_client: bool = True,
) -> Dataset:
    """CSV files with the same columns; a natural client is what the column ``client`` names, else a file."""
    tables = [read_table(path, target, client) for path in paths]
    expected = tables[0].columns
    for path, table in zip(paths, tables, strict=True):
        if table.columns != expected:
            raise DataError(f"{path}: features {table.columns}; expected {expected}, as in {paths[0].name}")
    where = paths[0].parent if len(paths) > 1 else paths[0]
    targets = encode_targets(labels_of(tables, regression), where, regression)
    rows = [len(table.labels) for table in tables]
    strata = np.zeros(sum(rows)) if regression else targets.y
    if client is not None:
        owner = np.array([name for table in tables for name in table.owners])
    elif file_is_client:
        owner = np.repeat([_stem(path) for path in paths], rows)
    else:
        owner = None
    test = holdout((strata,) if owner is None else (strata, owner), test_fraction, seed, where)
    numbers, names = (None, None) if owner is None else number_clients(owner, test)
    found = np.concatenate([table.x for table in tables])
    x = fill_in(found, test, standardize)
    data = Dataset("csv", *divide(x, targets.y, numbers, test), targets.classes, names, targets.label_names)
    names = tuple(expected)
    return replace(data, feature_names=names, target_name=tables[0].target, notes=_filled(found, names))


def _filled(x: NDArray[np.float64], columns: Sequence[str]) -> str:
    """Say how many numbers of each column were missing; "" if none were."""
    counts = np.isnan(x).sum(0)
    some = [f"{column} ({count})" for column, count in zip(columns, counts.tolist(), strict=True) if count]
    return f"missing cells filled with the training mean: {', '.join(some)}" if some else ""


def _stem(path: Path) -> str:
    """Name of a file without ``.csv`` or ``.csv.gz``."""
    name = path.name
    return name[: name.lower().rindex(".csv")]


def csv_folder(
    path: str | Path,
    *,
    target: str | None = None,
    client: str | None = None,
    regression: bool = False,
    standardize: bool = True,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """A folder with one ``*.csv`` per natural client, or one file; features float32 ``[N, d]``, of which missing ones
    (empty, ?, NA) become the training mean.

    Args:
        path: the folder or the file.
        target: column with the labels; by default the last one.
        client: column with the natural client of each row; by default each file of a folder is a client, and a single
            file has none.
        regression: predict real numbers; by default targets are classes.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training samples.
        test_fraction: share of each class of each client that is held out for testing.
        seed: seed of the choice of test samples, independent of the run's.
    """
    expected = "a folder with one CSV file per client, or one file"
    place = user_path(path, expected)
    if place.is_file():
        data = read_tables([place], target, regression, standardize, test_fraction, seed, client, False)
        if named := {"client", "client_id"} & set(data.feature_names or ()):
            name = named.pop()
            raise DataError(
                f"{place}: column {name!r} would be a feature; set --data.client {name} if it names the client of each"
                " row, or rename it"
            )
        return data
    listed = {p.name: p for p in place.iterdir() if p.name[0] != "."}
    names = in_order(name for name in listed if name.lower().endswith((".csv", ".csv.gz")))
    if not names:
        found = f" (found {', '.join(in_order(listed)[:5])})" if listed else ""
        raise MissingDataError(f"{place}: no *.csv{found}; expected {expected}")
    files = [listed.pop(name) for name in names]
    data = read_tables(files, target, regression, standardize, test_fraction, seed, client)
    ignored = [f"files ignored: {', '.join(in_order(listed))}"] if listed else []
    return replace(data, notes="; ".join([*([data.notes] if data.notes else []), *ignored]))


def heart_disease(store: Store, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """920 patients of four hospitals, 13 features; the target is the presence of heart disease (``num`` above 0)."""
    paths = list(store.find(HEART_DISEASE).values())
    data = read_tables(paths, "num", False, True, test_fraction, seed)
    train, test = (split._replace(y=(split.y > 0).long()) for split in (data.train, data.test))
    labels = ("no disease", "disease")
    return replace(data, name="heart_disease", train=train, test=test, classes=2, label_names=labels)
