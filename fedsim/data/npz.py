"""Arrays in a NumPy ``.npz`` file, and UCI HAR (Anguita et al., "A public domain dataset for human activity
recognition using smartphones", ESANN 2013) in that form.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.dataset import Dataset
from fedsim.data.sources import Source, Store, read_bytes, user_file
from fedsim.data.splits import Targets, divide, encode_targets, holdout, number_clients, standardized
from fedsim.errors import ConfigError, DataError
from fedsim.record.files import atomic

UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
KINDS = {"x": "biuf", "y": "biufU", "client": "iuU"}  # NumPy's letters for bool, int, uint, float, str
KNOWN = {"x", "y", "client", "label_names", "test_clients", "x_test", "y_test", "client_test"}
NEEDS = {"y_test": ["x_test"], "client_test": ["x_test", "client"], "test_clients": ["client"]}
HAR = Source(
    title="UCI HAR",
    origin="https://archive.ics.uci.edu/dataset/240, its inertial signals saved with numpy.savez as arrays x float32 "
    "[10299, 9, 128], y (activity), client (subject), test_clients and label_names",
    folder="",
    files={"uci_har.npz": None},
)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an ``.npz`` file; raises `DataError` if it is corrupt, holds Python objects, or arrays do not fit."""
    user_file(path, "an .npz with arrays x and y")
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error}); save it with numpy.savez") from error
    for name, others in NEEDS.items():
        if missing := [other for other in others if name in arrays and other not in arrays]:
            raise DataError(f"{path}: {name} without {missing[0]}, so it would be ignored; give both, or neither")
    for suffix in ("", "_test") if "x_test" in arrays else ("",):
        names = [f"{key}{suffix}" for key in ("x", "y", "client")]
        for name in names[:2]:
            if name not in arrays:
                raise DataError(f"{path}: no array {name}; expected {' and '.join(names[:2])}, found {list(arrays)}")
        rows = arrays[names[0]].shape[:1]
        for name in arrays.keys() & set(names[1:]):
            if arrays[name].shape != rows or not rows:
                shapes = f"{name} {list(arrays[name].shape)} does not fit {names[0]} {list(arrays[names[0]].shape)}"
                raise DataError(f"{path}: {shapes}; expected one value for each row of {names[0]}")
    check_kinds(arrays, path)
    for name in ("x", "y", "client"):
        if f"{name}_test" in arrays:
            check_pair(name, arrays[name], arrays[f"{name}_test"], path)
    return arrays


def check_kinds(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    """Raise `DataError` for an array of another type or shape than its name requires."""
    for name, array in arrays.items():
        if array.dtype.kind not in KINDS.get(name.removesuffix("_test"), array.dtype.kind):
            raise DataError(
                f"{path}: {name} has type {array.dtype}; expected numbers, or strings as labels and clients"
            )
        if name in ("x", "x_test") and (array.ndim < 2 or 0 in array.shape[1:]):
            raise DataError(f"{path}: {name} {list(array.shape)} has no feature; expected [N, ...], such as x[:, None]")
        if name in ("x", "x_test") and array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            where = np.argwhere(~finite)[0].tolist()
            raise DataError(f"{path}: {name}{where} is {array[tuple(where)]}; expected finite numbers")
    if "test_clients" in arrays and "x_test" in arrays:
        raise DataError(f"{path}: both test_clients and x_test choose the test samples; remove one of them")


def check_pair(name: str, train: NDArray[Any], test: NDArray[Any], path: Path) -> None:
    """Raise `DataError` if the training and the test array of one name are not of the same kind, shape and unit."""
    if name == "x" and train.shape[1:] != test.shape[1:]:
        shapes = f"x {list(train.shape)}, x_test {list(test.shape)}"
        raise DataError(f"{path}: {shapes}; expected samples of the same shape")
    kind, other = (_kind(array, name) for array in (train, test))
    if kind != other:
        raise DataError(
            f"{path}: {name} is {train.dtype} ({kind}), {name}_test {test.dtype} ({other}); expected the same type"
        )
    if name == "x" and train.dtype.kind == "f" and train.size and test.size and min(train.min(), test.min()) >= 0:
        small, large = sorted([float(train.max()), float(test.max())])
        if small <= 1 and 16 < large <= 255:
            raise DataError(
                f"{path}: x reaches {train.max():g}, x_test {test.max():g}; expected the same unit: divide one by 255"
            )


def _kind(array: NDArray[Any], name: str) -> str:
    if name == "x" and array.dtype == np.uint8:
        return "pixels, divided by 255"
    if name == "x" and array.dtype.kind == "b":
        return "booleans"
    return {"f": "real numbers", "U": "strings"}.get(array.dtype.kind, "whole numbers")


def as_inputs(x: NDArray[Any]) -> NDArray[Any]:
    """Bytes as they are (pixels), other whole numbers as int64 (tokens), real numbers as float32."""
    if x.dtype == np.uint8:
        return x
    return x.astype(np.int64 if x.dtype.kind in "iu" else np.float32)


def as_targets(y: NDArray[Any], label_names: NDArray[Any] | None, path: Path) -> Targets:
    """Real numbers as they are, labels numbered; with ``label_names`` the labels are already positions in it."""
    if label_names is None:
        fix = "to predict numbers, save y as real numbers: y.astype(float)"
        return encode_targets(y, path, y.dtype.kind == "f", fix)
    names = tuple(map(str, np.ravel(label_names)))
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(names):
        raise DataError(f"{path}: y does not hold positions in label_names; expected integers 0 to {len(names) - 1}")
    return Targets(y.astype(np.int64), len(names), names)


def mark_test(arrays: dict[str, NDArray[Any]], path: Path, test_fraction: float | None, seed: int) -> NDArray[np.bool_]:
    """Mask of the test samples, over those of x and then those of x_test."""
    y = arrays["y"]
    if "x_test" in arrays:
        if test_fraction is not None:
            raise ConfigError(f"test_fraction={test_fraction} was given, but {path} has its own x_test; leave it out")
        test = np.arange(len(y) + len(arrays["y_test"])) >= len(y)
    elif test_fraction is None and {"client", "test_clients"} <= arrays.keys():
        test = np.isin(arrays["client"], arrays["test_clients"])
    else:
        keys = (np.zeros(len(y)) if y.dtype.kind == "f" else y, arrays.get("client", np.zeros(len(y))))
        test = holdout(keys, 0.2 if test_fraction is None else test_fraction, seed, path)
    if test.all() or not test.any():
        raise DataError(f"{path}: {test.sum()} of {len(test)} samples are for testing; expected some, and not all")
    return test


def joined(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """An array followed by its test part, if the file has one."""
    return np.concatenate([arrays[key] for key in (name, f"{name}_test") if key in arrays])


def npz(
    path: str | Path, *, standardize: bool = False, test_fraction: float | None = None, seed: int = 0
) -> Dataset:
    """Arrays ``x`` ``[N, ...]``, ``y`` ``[N]`` (integers or strings: classes; reals: regression), and perhaps
    ``client`` ``[N]``, ``label_names``, and either ``test_clients`` or ``x_test``, ``y_test``, ``client_test``.

    Args:
        path: the file.
        standardize: shift and scale each feature to mean 0 and variance 1 over the training samples.
        test_fraction: share of each class of each client that is held out for testing, instead of the clients that
            ``test_clients`` names; 0.2 where the file names no test samples.
        seed: of the choice of test samples, whatever the run's seed is.
    """
    path = Path(path).expanduser()
    arrays = read_npz(path)
    test = mark_test(arrays, path, test_fraction, seed)
    targets = as_targets(joined(arrays, "y"), arrays.get("label_names"), path)
    x = as_inputs(joined(arrays, "x"))
    if standardize:
        x = standardized(x, test, str(path))
    train, held = (half._replace(pixels=x.dtype == np.uint8) for half in divide(x, targets.y, None, test))
    names = None
    if "client" in arrays:
        owner = joined(arrays, "client")
        owned = test[: len(owner)]  # x_test may come without client_test
        client, names = number_clients(owner, owned)
        train = train._replace(client=client[~owned])
        held = held._replace(client=client[owned] if len(owned) == len(test) else None)
    ignored = sorted(arrays.keys() - KNOWN)
    notes = f"arrays ignored: {', '.join(ignored)}" if ignored else ""
    return Dataset("npz", train, held, targets.classes, names, targets.label_names, notes)


def save_dataset(data: Dataset, path: str | Path) -> None:
    """Write a data set as an ``.npz`` file that ``--data npz --data.path FILE`` reads, so that an experiment on data
    made in Python can be run from its ``config.yaml``.

    Raises:
        DataError: inputs are of several tensors, targets not one for each sample, or the file exists.
    """
    path = Path(path)
    halves = {"": data.train, "_test": data.test}
    arrays: dict[str, NDArray[Any]] = {}
    for end, split in halves.items():
        if not isinstance(split.x, Tensor) or not isinstance(split.y, Tensor) or split.y.dim() != 1:
            raise DataError(
                f"data set {data.name!r} has inputs or targets that an .npz file of fedsim cannot hold; expected one"
                " tensor of inputs and one target for each sample"
            )
        x = split.x if split.x.dtype != torch.uint8 or split.pixels else split.x.long()
        arrays |= {f"x{end}": x.numpy(), f"y{end}": split.y.numpy()}
        if split.client is not None:
            names = np.array(data.client_names) if data.client_names else np.arange(split.client.max() + 1)
            arrays[f"client{end}"] = names[split.client]
    if data.classes:
        arrays["label_names"] = np.array(data.label_names or [str(k) for k in range(data.classes)])
    if path.exists():
        raise DataError(f"{path} exists, and nothing is overwritten; expected another name")
    with atomic(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def uci_har(store: Store, *, test_fraction: float | None = None, seed: int = 0) -> Dataset:
    """10,299 windows ``[9, 128]`` of body acceleration (g), angular velocity (rad/s) and total acceleration (g).

    Natural clients are the 30 subjects, of whom the published 9 are the test split; with ``test_fraction`` that
    fraction of each subject's windows is.
    """
    data = npz(store.find(HAR)["uci_har.npz"], test_fraction=test_fraction, seed=seed)
    return replace(data, name="uci_har", notes="")
