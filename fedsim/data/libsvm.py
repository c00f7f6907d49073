"""LIBSVM text files: lines of ``label index:value ...``, indices from 1 (Chang and Lin, "LIBSVM", 2011).

The named sets are those of https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.data.sources import MissingDataError, Remote, Source, Store
from fedsim.data.splits import divide, encode_targets, fill_in, holdout
from fedsim.errors import DataError

BASE_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary"
CHECKSUMS = {
    "a9a": "f5d5ffd8d865ff41328e7ee043e4b020816914ff6843ff15b98905ddbedce906",
    "a9a.t": "1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
    "mushrooms": "f39a4eb628dc61a7d43760815b061c9e497aa728ce1ad8bde57a09ef6043b538",
    "w8a": "6a9fa8fd5f524303240a5db07d4b3d4a51e8b7b4b20a914105d8e3e8c81640f2",
}
FORM = "'label index:value ...'"
DENSE_LIMIT = 8 * 2**30  # bytes


def read_libsvm(path: Path, n_features: int | None, zero_based: bool) -> tuple[Any, NDArray[np.float64]]:
    """Sparse features ``[N, d]`` and targets ``[N]``; raises `DataError` if the file is corrupt or empty."""
    from sklearn.datasets import load_svmlight_file

    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; expected LIBSVM text")
    try:
        x, y = load_svmlight_file(str(path), n_features=n_features, dtype=np.float32, zero_based=zero_based)
    except (ValueError, OverflowError, OSError, EOFError) as error:
        raise DataError(f"{path}: {error}; expected lines {FORM} with indices from {1 - zero_based}") from error
    if not len(y):
        raise DataError(f"{path}: no samples; expected lines {FORM}")
    return x, y


def libsvm(
    path: str | Path,
    *,
    test_path: str | Path | None = None,
    n_features: int | None = None,
    zero_based: bool = False,
    regression: bool = False,
    standardize: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """A LIBSVM text file as dense float32 ``[N, d]``; labels are numbered in sorted order (-1, +1 become 0, 1).

    Args:
        path: the file.
        test_path: another file with the test samples.
        n_features: number of features d; by default the highest index found.
        zero_based: whether indices begin with 0 instead of 1.
        regression: whether targets are real numbers to be predicted, and no classes.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training samples.
        test_fraction: share of each class that is held out where there is no ``test_path``; with 0 all samples, in the
            order of the file, are training samples and test samples, as problems of theory want it.
        seed: of the choice of test samples, whatever the run's seed is.
    """
    paths = [Path(p).expanduser() for p in (path, test_path) if p is not None]
    parts = [read_libsvm(p, n_features, zero_based) for p in paths]
    width = max(x.shape[1] for x, _ in parts)
    count = sum(len(y) for _, y in parts)
    if 4 * count * width > DENSE_LIMIT:
        limit = f"at most {DENSE_LIMIT >> 30} GiB as dense float32"
        raise DataError(f"{path}: {count} samples x {width} features; expected {limit}")
    for x, _ in parts:
        x.resize((x.shape[0], width))  # a file need not use the highest feature
    targets = encode_targets(np.concatenate([y for _, y in parts]), path, regression)
    if test_path is None and test_fraction == 0:
        test = np.zeros(count, bool)
    elif test_path is None:
        strata = np.zeros(count) if regression else targets.y
        test = holdout((strata,), test_fraction, seed, path)
    else:
        test = np.arange(count) >= len(parts[0][1])
    features = np.concatenate([x.toarray() for x, _ in parts])
    if standardize:
        features = fill_in(features, test, standardize)
    train, rest = divide(features, targets.y, None, test)
    return Dataset("libsvm", train, rest if test.any() else train, targets.classes, None, targets.label_names)


def libsvm_named(
    name: str, store: Store, *, standardize: bool = False, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """One of the binary LIBSVM sets; a stratified split, whose test side is ``test_fraction`` of the file (see
    `libsvm`)."""
    path = store.find(libsvm_source(name))[name]
    data = libsvm(path, standardize=standardize, test_fraction=test_fraction, seed=seed)
    return replace(data, name=name)


def a9a(store: Store) -> Dataset:
    """32,561 + 16,281 people of the 1994 census, 123 binary features; the split is the published one."""
    files = store.find(libsvm_source("a9a", "a9a.t"))
    return replace(libsvm(files["a9a"], test_path=files["a9a.t"]), name="a9a")


def libsvm_source(*names: str) -> Source:
    """Where the named files come from."""
    files = {name: Remote(name, CHECKSUMS[name]) if name in CHECKSUMS else None for name in names}
    return Source(names[0], f"{BASE_URL}.html", "libsvm", files, BASE_URL)
