"""Common parts of partitioners: validation, the random generator, and assignment of samples to clients."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import PartitionError, title
from fedsim.partition.partition import Partition

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def generator(seed: int) -> np.random.Generator:
    """The stream of one partition: counter-based Philox."""
    if not isinstance(seed, Integral) or seed < 0:
        raise PartitionError(f"seed must be an integer of 0 or more, got {seed!r}")
    return np.random.Generator(np.random.Philox(int(seed)))


def check_count(name: str, value: int | None, minimum: int = 1, optional: bool = False) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum`` (or None, where that is allowed)."""
    if optional and value is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise PartitionError(f"{name} must be an integer of {minimum} or more, got {value!r}")


def check_alpha(alpha: float | Sequence[float]) -> float | tuple[float, ...]:
    """The Dirichlet concentration as a float or a tuple of floats; raise unless all are positive and finite."""
    values = list(alpha) if isinstance(alpha, Iterable) else [alpha]
    if not values or not all(0 < a < math.inf for a in map(float, values)):
        raise PartitionError(f"alpha must be positive and finite, got {alpha!r}; near 0 is skewed, 100 is nearly IID")
    return tuple(map(float, values)) if isinstance(alpha, Iterable) else float(alpha)


def concentration(alpha: float | Sequence[float], length: int, what: str) -> np.ndarray:
    """``alpha`` as a vector ``[length]``: one value for each of ``what``."""
    vector = np.atleast_1d(np.asarray(alpha, float))
    if len(vector) not in (1, length):
        raise PartitionError(f"alpha has {len(vector)} values for {length} {what}: give one number or {length}")
    return np.broadcast_to(vector, length)


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Partition sizes as a tuple; raise unless all are integers of 0 or more and one is positive."""
    for size in sizes:
        check_count("every one of partition_sizes", size, minimum=0)
    if not sum(sizes):
        raise PartitionError(f"partition_sizes must give at least one client a sample, got {list(sizes)}")
    return tuple(int(size) for size in sizes)


def check_total(sizes: Sequence[int], total: int) -> None:
    """Raise when clients ask for more samples than there are."""
    if sum(sizes) > total:
        raise PartitionError(f"partition_sizes sum to {sum(sizes)} of {total} samples: they may sum to {total} at most")


def check_clients(n: int, total: int) -> None:
    """Raise when there are more clients than samples."""
    if n > total:
        raise PartitionError(f"{n} clients cannot each own one of {total} samples: num_partitions may be {total}")


def class_labels(labels: np.ndarray, partitioner: object) -> tuple[np.ndarray, np.ndarray]:
    """The classes that occur ``[C]``, sorted, and the position ``[N]`` of each sample's class among them."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        name = type(partitioner).__name__
        fix = "use IidPartitioner, a size-based or a natural-id partitioner"
        given = f"{labels.dtype} targets of shape {list(labels.shape)}"
        raise PartitionError(f"{name} divides by class and needs one integer label per sample, got {given}: {fix}")
    if not len(labels):
        raise PartitionError("the data set has no samples")
    classes, position = np.unique(labels, return_inverse=True)
    return classes, position


def describe(partitioner: DataclassInstance, seed: int, **facts: object) -> dict[str, Any]:
    """The record of a partition: name, parameters, seed, and the ``facts`` of how it came about, as JSON values."""
    record = {"name": type(partitioner).__name__, **dataclasses.asdict(partitioner), "seed": seed, **facts}
    return dict(json.loads(json.dumps(record, default=lambda v: v.item() if hasattr(v, "item") else title(v))))


def by_owner(samples: np.ndarray, owner: np.ndarray, n: int, scheme: dict[str, Any]) -> Partition:
    """Group ``samples [m]``, which the partition takes over, by their ``owner [m]`` in 0..n-1, keeping their order."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))])
    if not (owner[1:] >= owner[:-1]).all():
        samples = samples[np.argsort(owner, kind="stable")]
    samples.setflags(write=False)                          # then the partition needs no copy of them
    return Partition(samples, offsets, scheme)


def by_sizes(sizes: np.ndarray, total: int, rng: np.random.Generator, scheme: dict[str, Any]) -> Partition:
    """Random samples without replacement, ``sizes [n]`` of them to each client; what is left over is not used."""
    return Partition(rng.permutation(total)[: sizes.sum()], np.concatenate([[0], np.cumsum(sizes)]), scheme)


def rank_within(group: np.ndarray) -> np.ndarray:
    """For each position of ``group [m]`` (values 0..k), the number of earlier positions of the same group, ``[m]``."""
    count = np.bincount(group)
    rank = np.empty(len(group), np.int64)
    rank[np.argsort(group, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
    return rank


def slots(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``counts[i, c]`` places for samples of class c at client i: ``(owner, wanted class)``, each ``[m]``, shuffled."""
    n, classes = counts.shape
    order = rng.permutation(counts.sum())
    place = np.repeat(np.arange(n * classes), counts.ravel())[order]
    return place // classes, place % classes


def draw(label: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One sample of each ``wanted`` class ``[m]``, in this order, from shuffled pools without replacement.

    A pool that has run empty is refilled as it was, so that samples repeat where more are wanted than there are.
    """
    size = np.bincount(label)
    start = np.cumsum(size) - size
    pool = rng.permutation(len(label))
    pool = pool[np.argsort(label[pool], kind="stable")]               # class 0 in random order, then class 1, ...
    samples: np.ndarray = pool[start[wanted] + rank_within(wanted) % size[wanted]]
    return samples
