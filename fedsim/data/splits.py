"""What every loader needs: labels as class numbers, clients as numbers, a test split, standardised features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.data.dataset import Split
from fedsim.errors import ConfigError, DataError


class Targets(NamedTuple):
    """Targets as a model wants them.

    Attributes:
        y: ``[N]`` int64 class numbers, or ``[N]`` float32 for regression.
        classes: number of classes, 0 for regression.
        label_names: the label as the file has it, at the position of its class; None for regression.
    """

    y: NDArray[Any]
    classes: int
    label_names: tuple[str, ...] | None


def encode_targets(values: NDArray[Any], where: object, regression: bool = False) -> Targets:
    """Number the labels ``values`` ``[N]`` (numbers or strings) in sorted order, or take them as real targets.

    Raises `DataError`, naming ``where``, for targets that are not finite, or not whole numbers outside regression.
    """
    if values.dtype.kind == "f" or regression:
        if values.dtype.kind not in "buif" or not np.isfinite(values).all():
            raise DataError(f"{where}: a target is not a finite number; expected a number in each row")
        if regression:
            return Targets(values.astype(np.float32), 0, None)
        if (fractional := values[values != np.round(values)]).size:
            raise DataError(
                f"{where}: label {fractional[0]:g} is not a whole number; expected class labels, or set regression=True"
            )
        values = values.astype(np.int64)
    labels, y = np.unique(values, return_inverse=True)
    return Targets(y.astype(np.int64), len(labels), tuple(str(label) for label in labels))


def number_clients(owner: NDArray[Any], test: NDArray[np.bool_]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the natural owners ``[N]`` of the samples in sorted order, those with training samples first.

    Returns the number of each sample's owner ``[N]`` and the owners' names by number.
    """
    training = np.unique(owner[~test])
    names = np.concatenate([training, np.setdiff1d(owner, training)])
    order = np.argsort(names)
    return order[np.searchsorted(names, owner, sorter=order)].astype(np.int64), tuple(str(name) for name in names)


def holdout(keys: tuple[NDArray[Any], ...], test_fraction: float, seed: int, where: object) -> NDArray[np.bool_]:
    """Which samples ``[N]`` are test samples: the same ``test_fraction`` of every stratum, to within one sample.

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
        raise DataError(f"{where}: {n} samples; expected enough to hold out a fraction {test_fraction} and keep some")
    return test


def divide(
    x: NDArray[Any], y: NDArray[Any], client: NDArray[np.int64] | None, test: NDArray[np.bool_]
) -> tuple[Split, Split]:
    """The training and the test split of samples ``x`` ``[N, ...]``; ``test`` ``[N]`` marks the test samples."""
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
