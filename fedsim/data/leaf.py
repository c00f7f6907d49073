"""LEAF's JSON (Caldas et al., "LEAF: a benchmark for federated settings", 2018, arXiv:1812.01097).

A file is ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.arrays import distinct
from fedsim.data.dataset import Dataset
from fedsim.data.sources import MissingDataError, read_text, user_path
from fedsim.data.splits import divide, encode_targets, holdout, in_order, number_clients
from fedsim.data.text import code_points
from fedsim.errors import DataError

FORM = '{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}'


def leaf(
    path: str | Path,
    *,
    shape: Sequence[int] | None = None,
    regression: bool = False,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Dataset:
    """LEAF's JSON: numbers as float32 ``[N, ...]`` with a label each, or texts of T characters with the character that
    follows each, as x and y int64 ``[N, T]``, where y is x moved by one character. Natural clients are the users.

    Args:
        path: a file, a folder of ``*.json`` such as ``all_data_0.json``, or one with folders ``train`` and ``test``.
        shape: shape of an input, such as 1,28,28 for FEMNIST, whose files list 784 numbers; by default the file's.
        regression: predict real numbers; by default targets are classes.
        test_fraction: share of each user's samples that is held out for testing, 0.2 by default; leave it out with a
            folder ``test``.
        seed: seed of the choice of test samples, independent of the run's.
    """
    place = Path(path).expanduser()
    split = (place / "train").is_dir() and (place / "test").is_dir()
    parts = [_read(place / part) for part in ("train", "test")] if split else [_read(place)]
    xs = [sample for part in parts for x, _ in part.values() for sample in x]
    ys = [label for part in parts for _, y in part.values() for label in y]
    owner = np.array([user for part in parts for user, (x, _) in part.items() for _ in x])
    if not xs:
        raise DataError(f"{place}: no samples; expected {FORM}")
    x: NDArray[Any]
    if isinstance(xs[0], str):
        x, y, label_names = _characters(xs, ys, place)
        classes, strata = len(label_names), np.zeros(len(owner))
    else:
        x = _numbers(xs, shape, place)
        targets = encode_targets(_labels(ys, place), place, regression)
        y, classes, names = targets.y, targets.classes, targets.label_names
        label_names, strata = names or (), np.zeros(len(owner)) if regression else targets.y
    if split and test_fraction is not None:
        raise DataError(f"{place}: test_fraction={test_fraction}, but the folder has test samples; leave it out")
    if split:
        test = np.arange(len(owner)) >= sum(len(x) for x, _ in parts[0].values())
    else:
        test = holdout((strata, owner), 0.2 if test_fraction is None else test_fraction, seed, place)
    client, client_names = number_clients(owner, test)
    return Dataset("leaf", *divide(x, y, client, test), classes, client_names, label_names or None)


def _read(place: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Samples and targets of every user in a file or in all files of a folder."""
    expected = f"a file {FORM}, or a folder of them"
    if user_path(place, expected).is_dir():
        names = in_order(p.name for p in place.iterdir() if p.suffix.lower() == ".json" and p.name[0] != ".")
        files = [place / name for name in names]
    else:
        files = [place]
    if not files:
        raise MissingDataError(f"{place}: no *.json; expected {expected}")
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for file in files:
        for user, data in _users(file).items():
            if user in found:
                raise DataError(f"{file}: user {user!r} is in an earlier file too; expected each user in one file")
            found[user] = data
    return found


def _users(file: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); expected {FORM}") from error
    if not isinstance(content, dict) or not isinstance(content.get("user_data"), dict):
        raise DataError(f"{file}: no object user_data; expected {FORM}")
    users = content.get("users", list(content["user_data"]))
    if not isinstance(users, list) or sorted(map(str, users)) != sorted(content["user_data"]):
        raise DataError(f"{file}: users are not those of user_data; expected the same in both")
    sizes = content.get("num_samples", [None] * len(users))
    if not isinstance(sizes, list) or len(sizes) != len(users):
        raise DataError(f"{file}: num_samples does not have a number for each of {len(users)} users")
    found = {}
    for user, size in zip(map(str, users), sizes, strict=True):
        data = content["user_data"][user]
        x, y = (data.get(name) if isinstance(data, dict) else None for name in ("x", "y"))
        if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y) or size not in (None, len(x)):
            lengths = [len(part) if isinstance(part, list) else None for part in (x, y)]
            raise DataError(
                f"{file}: user {user!r} has {lengths[0]} samples x, {lengths[1]} targets y and num_samples {size};"
                " expected lists of the same length"
            )
        found[user] = x, y
    return found


def _numbers(xs: list[Any], shape: Sequence[int] | None, place: Path) -> NDArray[np.float32]:
    """Samples of numbers as float32 ``[N, *shape]``."""
    try:
        x = np.array(xs)
        if x.dtype.kind not in "biuf":
            raise ValueError(f"got {xs[0]!r:.60}")
        x = x.astype(np.float32)
        x = x if shape is None else x.reshape(len(x), *shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{place}: inputs x are not arrays of numbers of one shape ({error}); expected numbers"
            f"{'' if shape is None else f' that fill the shape {list(shape)}'}, or texts of one length"
        ) from error
    if x.ndim < 2 or 0 in x.shape[1:] or not np.isfinite(x).all():
        raise DataError(f"{place}: inputs x {list(x.shape)}; expected finite numbers, one or more a sample")
    return x


def _labels(ys: list[Any], place: Path) -> NDArray[Any]:
    """Targets as an array ``[N]`` of numbers, or of strings."""
    for kind in (str, int | float):
        if all(isinstance(y, kind) and not isinstance(y, bool) for y in ys):
            return np.array(ys)
    odd = next(y for y in ys if isinstance(y, str) != isinstance(ys[0], str) or not isinstance(y, str | int | float))
    raise DataError(f"{place}: targets y such as {ys[0]!r:.40} and {odd!r:.40}; expected numbers, or strings, in all")


def _characters(
    xs: list[Any], ys: list[Any], place: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Texts ``[N, T]``, the characters that follow theirs ``[N, T]``, and the vocabulary."""
    for x, y in zip(xs, ys, strict=True):
        if not isinstance(x, str) or not isinstance(y, str) or len(x) != len(xs[0]) or len(y) != 1 or not x:
            raise DataError(
                f"{place}: x {x!r:.60} with y {y!r:.40}; expected texts of {len(xs[0])} characters and, as y, the next"
            )
    points = code_points("".join(x + y for x, y in zip(xs, ys, strict=True)))
    vocabulary = distinct(points)
    windows = np.searchsorted(vocabulary, points).astype(np.int64).reshape(len(xs), -1)
    return windows[:, :-1].copy(), windows[:, 1:].copy(), tuple(map(chr, vocabulary))
