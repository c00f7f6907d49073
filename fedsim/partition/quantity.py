"""Partitioners that look at the number of samples only: IID, or unequal sizes with IID content.

Names and size rules are those of Flower Datasets (github.com/adap/flower, datasets/flwr_datasets/partitioner); unlike
there, which samples a client gets is drawn at random from the seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.errors import PartitionError
from fedsim.partition.deal import by_sizes, check_clients, check_count, check_sizes, check_total, describe, generator
from fedsim.partition.partition import Partition


def even_sizes(total: int, n: int) -> np.ndarray:
    """``[n]`` sizes that sum to ``total`` and differ by at most one."""
    return total // n + (np.arange(n) < total % n).astype(np.int64)


def proportional_sizes(weight: Callable[[np.ndarray], np.ndarray], total: int, n: int) -> np.ndarray:
    """``[n]`` sizes in proportion to ``weight(1..n)``, rounded down; the last takes the remainder.

    Raises:
        PartitionError: the smallest client would get nothing.
    """

    def sizes(n: int) -> np.ndarray:
        units = weight(np.arange(1, n + 1))
        rounded: np.ndarray = np.floor(units / units.sum() * total).astype(np.int64)
        rounded[-1] += total - rounded.sum()
        return rounded

    if sizes(n).min() < 1:
        largest = bisect_left(range(1, n), True, key=lambda fewer: bool(sizes(fewer).min() < 1))
        raise PartitionError(f"{total} samples leave the smallest of {n} clients none: num_partitions may be {largest}")
    return sizes(n)


@dataclass(frozen=True)
class IidPartitioner:
    """Every client gets a uniformly random part; sizes differ by at most one.

    Args:
        num_partitions: number of clients.
    """

    num_partitions: int

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; every sample is used once."""
        check_clients(self.num_partitions, len(labels))
        sizes = even_sizes(len(labels), self.num_partitions)
        return by_sizes(sizes, len(labels), generator(seed), describe(self, seed))


@dataclass(frozen=True)
class SizePartitioner:
    """Client i gets ``partition_sizes[i]`` random samples; samples beyond their sum are not used.

    Args:
        partition_sizes: number of samples of each client; 0 makes an empty client.
    """

    partition_sizes: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "partition_sizes", check_sizes(self.partition_sizes))

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; no sample is used twice."""
        check_total(self.partition_sizes, len(labels))
        return by_sizes(np.array(self.partition_sizes), len(labels), generator(seed), describe(self, seed))


class _Proportional(ABC):
    """Base of partitioners in which the size of a client follows from its number."""

    num_partitions: int

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; every sample is used once."""
        sizes = proportional_sizes(self.weights, len(labels), self.num_partitions)
        return by_sizes(sizes, len(labels), generator(seed), describe(self, seed))  # type: ignore[arg-type]

    @abstractmethod
    def weights(self, i: np.ndarray) -> np.ndarray:
        """Relative sizes ``[n]`` of the clients ``i``, 1 to n."""


@dataclass(frozen=True)
class LinearPartitioner(_Proportional):
    """Client i of 1..n gets a random part of size proportional to i.

    Args:
        num_partitions: number of clients.
    """

    num_partitions: int

    def weights(self, i: np.ndarray) -> np.ndarray:
        """See ``_Proportional``."""
        return i


@dataclass(frozen=True)
class SquarePartitioner(_Proportional):
    """Client i of 1..n gets a random part of size proportional to i squared.

    Args:
        num_partitions: number of clients.
    """

    num_partitions: int

    def weights(self, i: np.ndarray) -> np.ndarray:
        """See ``_Proportional``."""
        squares: np.ndarray = np.square(i)
        return squares


@dataclass(frozen=True)
class ExponentialPartitioner(_Proportional):
    """Client i of 1..n gets a random part of size proportional to exp(i); feasible for about ln(N) clients.

    Args:
        num_partitions: number of clients.
    """

    num_partitions: int

    def weights(self, i: np.ndarray) -> np.ndarray:
        """See ``_Proportional``."""
        return np.exp(i - float(len(i)))


@dataclass(frozen=True)
class IdToSizeFncPartitioner(_Proportional):
    """Client i of 1..n gets a random part of size proportional to f(i), for a function f of your own.

    Args:
        num_partitions: number of clients.
        partition_id_to_size_fn: f, from an array of the numbers 1 to n ``[n]`` to relative sizes ``[n]``; in files
            its name, as my.module.function or numpy.sqrt.
    """

    num_partitions: int
    partition_id_to_size_fn: Callable[[Any], Any]          # of arrays; jsonargparse would search NumPy for its names

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.partition_id_to_size_fn):
            raise PartitionError(
                f"partition_id_to_size_fn is {self.partition_id_to_size_fn!r:.80}; expected a function of an array,"
                " such as numpy.sqrt"
            )

    def weights(self, i: np.ndarray) -> np.ndarray:
        """See ``_Proportional``."""
        found = np.asarray(self.partition_id_to_size_fn(i.astype(np.float64)), np.float64)
        if found.shape != i.shape or not np.isfinite(found).all() or not (found > 0).all():
            raise PartitionError(
                f"partition_id_to_size_fn returned {found!r:.200} for the clients 1 to {len(i)}; expected as many"
                " finite numbers above 0"
            )
        return found
