"""LIBSVM text files: lines of ``label index:value ...``, indices from 1 (Chang and Lin, "LIBSVM", 2011).

The named sets are those of https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html.
"""

from __future__ import annotations

import codecs
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset
from fedsim.data.sources import Remote, Source, Store, read_bytes, user_file
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

    data = read_bytes(user_file(path, "LIBSVM text")).removeprefix(codecs.BOM_UTF8)
    settings: dict[str, Any] = {"n_features": n_features, "dtype": np.float32, "zero_based": zero_based}
    try:
        x, y = load_svmlight_file(io.BytesIO(data), **settings)
    except (ValueError, OverflowError):
        try:
            x, y = load_svmlight_file(io.BytesIO(tidy(data, path, zero_based)), **settings)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}: {error}; expected lines {FORM} with indices from {1 - zero_based}") from error
    if not len(y) or not x.nnz:
        raise DataError(f"{path}: {len(y)} samples without features; expected lines {FORM}")
    if not np.isfinite(x.data).all():
        tidy(data, path, zero_based)
    return x, y


def tidy(data: bytes, path: Path, zero_based: bool) -> bytes:
    """LIBSVM text with the indices of every line sorted; raises `DataError` naming the first line that is not valid."""
    least, lines = 1 - zero_based, []
    for number, line in enumerate(data.decode(errors="replace").split("\n"), 1):
        label, *entries = line.split("#", 1)[0].split() or [""]
        if not label:
            continue
        pairs: dict[int, str] = {}
        try:
            word = label
            float(label)
            for word in entries:
                index, _, value = word.partition(":")
                if index == "qid":
                    continue
                if not abs(float(value)) <= np.finfo(np.float32).max:
                    raise DataError(f"{path}, line {number}: {word!r} is not finite; expected finite float32 values")
                if int(index) in pairs:
                    raise DataError(f"{path}, line {number}: index {index} twice; expected each feature once")
                pairs[int(index)] = value
        except ValueError:
            kind = "the label" if word is label else "an entry index:value"
            raise DataError(
                f"{path}, line {number}: {word[:40]!r} is not {kind}; expected {FORM} with numbers"
            ) from None
        if pairs and min(pairs) < least:
            fix = "; if the file counts from 0, set --data.zero_based true" if min(pairs) == 0 else ""
            raise DataError(f"{path}, line {number}: index {min(pairs)}; expected indices from {least}{fix}")
        lines.append(" ".join([label, *(f"{index}:{pairs[index]}" for index in sorted(pairs))]))
    return "\n".join(lines).encode()


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
        zero_based: indices begin with 0 instead of 1.
        regression: predict real numbers; by default targets are classes.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training samples.
        test_fraction: share of each class that is held out where there is no ``test_path``; with 0 all samples, in the
            order of the file, are training samples and test samples, as problems of theory want it.
        seed: seed of the choice of test samples, independent of the run's.
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
    notes = "no sample uses index 0: does the file count from 1?" if zero_based and not features[:, 0].any() else ""
    return Dataset("libsvm", train, rest if test.any() else train, targets.classes, None, targets.label_names, notes)


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
    """Source of the named files."""
    files = {name: Remote(name, CHECKSUMS[name]) if name in CHECKSUMS else None for name in names}
    return Source(names[0], f"{BASE_URL}.html", "libsvm", files, BASE_URL)
