"""Steps of every loader: labels to class numbers, clients to numbers, a test split, standardized features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.arrays import distinct
from fedsim.data.dataset import Split
from fedsim.errors import ConfigError, DataError, many

SMALL = 10
"""Up to so many classes may have few samples each."""
REGRESS = "to predict numbers, set --data.regression true"


class Targets(NamedTuple):
    """Targets in the form that a model takes.

    Attributes:
        y: ``[N]`` int64 class numbers, or ``[N]`` float32 for regression.
        classes: number of classes, 0 for regression.
        label_names: the label as the file has it, at the position of its class; None for regression.
    """

    y: NDArray[Any]
    classes: int
    label_names: tuple[str, ...] | None


def in_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: numbers in them compare as numbers."""
    names = sorted(names)
    if not any(digit in name for name in names for digit in "0123456789"):
        return names
    from topologies.order import natural  # slow: networkx

    return sorted(names, key=natural)


def encode_targets(
    values: NDArray[Any], where: object, regression: bool = False, regress: str = REGRESS
) -> Targets:
    """Number the labels ``values`` ``[N]`` (numbers, or strings in natural order), or take them as real targets.

    Raises `DataError`, naming ``where``, for targets that are not finite, not whole numbers outside regression, or
    nearly all different; ``regress`` tells how to predict them as numbers.
    """
    if values.dtype.kind == "f" or regression:
        if values.dtype.kind not in "buif" or not np.isfinite(values).all():
            raise DataError(f"{where}: a target is not a finite number; expected a number in each row")
        if regression:
            return Targets(values.astype(np.float32), 0, None)
        if (fractional := values[values != np.round(values)]).size:
            raise DataError(f"{where}: label {fractional[0]:g} is not a whole number; expected class labels; {regress}")
        if (large := values[np.abs(values) > 2**53]).size:
            raise DataError(f"{where}: label {large[0]:g} is too large for a class label; {regress}")
        values = values.astype(np.int64)
    labels, y = np.unique(values, return_inverse=True)
    if len(labels) > max(SMALL, len(values) / 2):
        kind, fix = ("words", "choose another target column") if labels.dtype.kind == "U" else ("numbers", regress)
        raise DataError(
            f"{where}: {len(labels)} different {kind} as labels of {len(values)} samples; expected classes with several"
            f" samples each; {fix}"
        )
    if labels.dtype.kind == "U":
        ordered = np.array(in_order(labels.tolist()))
        order = np.argsort(ordered)
        labels, y = ordered, order[y]
    return Targets(y.astype(np.int64), len(labels), tuple(str(label) for label in labels))


def number_clients(owner: NDArray[Any], test: NDArray[np.bool_]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the natural owners ``[N]`` of the samples in order (names in natural order), those with training samples
    first.

    Returns the number of each sample's owner ``[N]`` and the owners' names by number.
    """
    training = distinct(owner[~test])
    groups = [training, np.setdiff1d(distinct(owner), training, assume_unique=True)]
    if owner.dtype.kind == "U":
        groups = [np.array(in_order(group.tolist()), owner.dtype) for group in groups]
    names = np.concatenate(groups)
    order = np.argsort(names)
    return order[np.searchsorted(names, owner, sorter=order)].astype(np.int64), tuple(str(name) for name in names)


def holdout(keys: tuple[NDArray[Any], ...], test_fraction: float, seed: int, where: object) -> NDArray[np.bool_]:
    """Mask ``[N]`` of the test samples: the same ``test_fraction`` of every stratum, to within one sample.

    A stratum is the samples with equal ``keys`` (arrays ``[N]``, the coarsest last). Systematic sampling: shuffle
    within the strata, then take every ``1/test_fraction``-th sample. Raises `DataError`,
    naming ``where``, for too few samples.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"test_fraction is {test_fraction}; expected a number between 0 and 1, such as 0.2")
    n = len(keys[0])
    order = np.lexsort((np.random.default_rng(seed).random(n), *keys))
    test = np.zeros(n, dtype=np.bool_)
    test[order] = np.diff(np.floor(np.arange(n + 1) * test_fraction + 0.5)) > 0
    if test.all() or not test.any():
        enough = f"expected enough to hold out a fraction {test_fraction} and keep some"
        raise DataError(f"{where}: {many(n, 'sample')}; {enough}")
    return test


def divide(
    x: NDArray[Any], y: NDArray[Any], client: NDArray[np.int64] | None, test: NDArray[np.bool_]
) -> tuple[Split, Split]:
    """Training and test split of samples ``x`` ``[N, ...]``; ``test`` ``[N]`` marks the test samples."""
    train, held = (
        Split(torch.from_numpy(x[part]), torch.from_numpy(y[part]), None if client is None else client[part])
        for part in (~test, test)
    )
    return train, held


def fill_in(x: NDArray[np.float64], test: NDArray[np.bool_], standardize: bool) -> NDArray[np.float32]:
    """Features ``[N, d]`` with missing values (NaN) replaced by the mean over the training samples; with
    ``standardize`` all are then shifted and scaled to mean 0 and variance 1 over the known training values."""
    known = ~np.isnan(x[~test])
    count = known.sum(axis=0).clip(min=1)
    mean = np.where(known, x[~test], 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(known, x[~test] - mean, 0.0) ** 2).sum(axis=0) / count)
    x = np.where(np.isnan(x), mean, x)
    return ((x - mean) / np.where(std > 0, std, 1.0) if standardize else x).astype(np.float32)


def standardized(x: NDArray[Any], test: NDArray[np.bool_], where: str) -> NDArray[np.float32]:
    """Features of a table ``[N, d]`` with mean 0 and variance 1 over the training samples.

    Raises:
        ConfigError: other inputs, such as images or token ids.
    """
    if x.ndim != 2 or x.dtype.kind != "f":
        given = f"inputs of {where} are {x.dtype} of shape {list(x.shape)}"
        raise ConfigError(f"standardize is true, and {given}; expected real numbers [N, features]")
    return fill_in(x.astype(np.float64), test, True)
