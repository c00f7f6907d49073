"""Load the data of an experiment."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.data import Dataset, load
from fedsim.data.sources import data_directory
from fedsim.errors import ConfigError
from fedsim.experiment.experiment import Data
from fedsim.problems import PROBLEMS, Problem
from fedsim.tree import flat, shapes

UNDIVIDED = ("mushrooms", "w8a", "phishing", "german_scale", "australian")
"""LIBSVM sets published without a test split."""


def resolve_data(data: Data | Dataset | Problem) -> Dataset | Problem:
    """Load the data set or problem that ``data`` names."""
    if not isinstance(data, Data):
        return data
    versions = tuple(_changed(value) for name, value in data.options.items() if name.endswith("path"))
    return _load(data.name, str(data_directory(data.data_dir)), data.download, _frozen(data.options), versions)


def problem_and_dataset(data: Data | Dataset | Problem) -> tuple[Problem | None, Dataset]:
    """Load the problem that ``data`` names, None if it is no problem, and the samples."""
    source = resolve_data(data)
    return (source, source.dataset) if isinstance(source, Problem) else (None, source)


def _changed(value: Any) -> int:
    """Hash of the sizes and times of change of a file, or of the files in a folder; 0 if there is none."""
    try:
        path = Path(value).expanduser()
        files = [path, *path.rglob("*")] if path.is_dir() else [path]
        return hash(tuple(sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)))
    except (OSError, TypeError, ValueError):
        return 0


@lru_cache(maxsize=2)
def _load(
    name: str, data_dir: str, download: bool, options: tuple[tuple[str, Any], ...], versions: tuple[int, ...]
) -> Dataset | Problem:
    """Load data; the cache lets the seeds of a comparison share it until a file named in its options changes."""
    if name not in PROBLEMS:
        return load(name, data_dir, download=download, **dict(options))
    settings = dict(options)
    if name == "logistic_regression":
        source = settings.pop("data", "a9a")
        whole: dict[str, Any] = {"test_fraction": 0.0} if source in UNDIVIDED else {}   # theory is about all rows
        settings["data"] = load(source, data_dir, download=download, **whole)
    try:
        return PROBLEMS[name](**settings)
    except TypeError as error:
        raise ConfigError(f"data {name!r}: {error}; see `fedsim run --data {name} --help` for its options") from None


def _frozen(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in options.items()))


def data_hash(dataset: Dataset) -> str:
    """SHA-256 of the samples of a data set; of clients that are not in memory, of their numbers and the first one's."""
    digest = hashlib.sha256()
    if dataset.source is not None:
        digest.update(dataset.source.sizes.data)
    for split in (dataset.train, dataset.test):
        for tree in (split.x, split.y):
            if not isinstance(tree, Tensor):               # its names and nesting
                digest.update(repr(shapes(tree)).encode())
        for tensor in flat((split.x, split.y)):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
