"""Partitioners by a given distribution: of each class over the clients, or of a real-valued target.

Names and parameters are those of Flower Datasets (github.com/adap/flower, datasets/flwr_datasets/partitioner).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.checks import number
from fedsim.errors import PartitionError
from fedsim.partition.deal import by_owner, check_clients, check_count, class_labels, describe, draw, generator
from fedsim.partition.label import assign_classes
from fedsim.partition.partition import Partition
from fedsim.partition.quantity import even_sizes


@dataclass(frozen=True)
class DistributionPartitioner:
    """Client i holds the classes i, i+1, ... modulo their number; given numbers say how each class is shared out.

    Source: Li et al., MLSys 2020 (arXiv:1812.06127), whose power law is lognormal numbers. ``num_partitions`` is a
    multiple of the number of classes C, so that each class has m = n k / C holders, in order of client number.

    Args:
        distribution_array: ``[C, m]``, one row a class: the shares of its holders, which are scaled to its samples, or,
            without ``rescale``, their numbers of samples.
        num_partitions: number of clients n.
        num_unique_labels_per_partition: number of classes k of every client.
        preassigned_num_samples_per_label: samples that every holder has of each of its classes before the others are
            shared out; without effect without ``rescale``.
        rescale: scale the rows to the numbers of samples, all of which are used; what rounding leaves of a class goes
            to one of its holders, drawn at random.
    """

    distribution_array: Sequence[Sequence[float]]
    num_partitions: int
    num_unique_labels_per_partition: int
    preassigned_num_samples_per_label: int = 0
    rescale: bool = True

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        check_count("num_unique_labels_per_partition", self.num_unique_labels_per_partition)
        check_count("preassigned_num_samples_per_label", self.preassigned_num_samples_per_label, minimum=0)
        rows = [np.asarray(row, float) for row in self.distribution_array]
        if not rows or len({row.shape for row in rows}) > 1 or rows[0].ndim != 1:
            raise PartitionError("distribution_array has rows of unequal length; expected [classes, holders of each]")
        array = np.stack(rows)
        if not np.isfinite(array).all() or array.min() < 0 or not array.sum(1).all():
            raise PartitionError("distribution_array needs finite numbers, 0 or more, and one above 0 in each row")
        object.__setattr__(self, "distribution_array", tuple(map(tuple, array.tolist())))

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; no sample is used twice."""
        classes, label = class_labels(labels, self)
        rng, sizes = generator(seed), np.bincount(label)
        shares = self._numbers(sizes, rng)
        holds = assign_classes(
            self.num_partitions, len(classes), self.num_unique_labels_per_partition, "deterministic", rng
        )
        counts = np.zeros(holds.shape, np.int64)
        for c in range(len(classes)):
            counts[holds[:, c], c] = shares[c]
        if not counts.sum(1).all():
            raise PartitionError(
                f"client {int(np.argmin(counts.sum(1)))} gets no samples; expected larger numbers in"
                " distribution_array, or preassigned_num_samples_per_label"
            )
        place = np.repeat(np.arange(counts.size), counts.ravel())
        owner, wanted = place // len(classes), place % len(classes)
        samples, order = draw(label, wanted, rng), rng.permutation(len(owner))
        return by_owner(samples[order], owner[order], self.num_partitions, describe(self, seed))

    def _numbers(self, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Numbers of samples ``[C, m]`` of the holders of each class, of which there are ``sizes [C]``."""
        array, n, k = np.array(self.distribution_array), self.num_partitions, self.num_unique_labels_per_partition
        if k > len(sizes) or n * k % len(sizes) or n % len(sizes):
            raise PartitionError(
                f"{n} clients of {k} of {len(sizes)} classes: num_partitions must be a multiple of {len(sizes)}, and"
                f" num_unique_labels_per_partition may be {len(sizes)} at most"
            )
        m = n * k // len(sizes)
        if array.shape != (len(sizes), m):
            raise PartitionError(
                f"distribution_array has the shape {list(array.shape)}; expected {[len(sizes), m]}: a row for each"
                f" class, and num_partitions * num_unique_labels_per_partition / {len(sizes)} columns"
            )
        if not self.rescale:
            found: np.ndarray = array.astype(np.int64)
            if (over := found.sum(1) > sizes).any():
                worst = int(np.argmax(over))
                raise PartitionError(
                    f"distribution_array asks for {found[worst].sum()} samples of class {worst}, which has"
                    f" {sizes[worst]}: lower that row, or set rescale"
                )
            return found
        first = self.preassigned_num_samples_per_label
        if (sizes < first * m).any():
            raise PartitionError(
                f"preassigned_num_samples_per_label is {first} for {m} holders of class {int(sizes.argmin())}, which"
                f" has {sizes.min()} samples: it may be {sizes.min() // m}"
            )
        shares = array / array.sum(1, keepdims=True) * (sizes - first * m)[:, None]
        found = np.floor(shares).astype(np.int64) + first
        found[np.arange(len(sizes)), rng.integers(0, m, len(sizes))] += sizes - found.sum(1)
        return found


@dataclass(frozen=True)
class ContinuousPartitioner:
    """Samples in the order of a real-valued target are cut into equal parts; noise mixes them.

    They are sorted by ``strictness * z + (1 - strictness) * e``, with z the standardised target and e standard normal:
    0 is IID, 1 gives each client an interval of targets.

    Args:
        num_partitions: number of clients.
        strictness: weight of the target, from 0 to 1.
    """

    num_partitions: int
    strictness: float

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        number("strictness", self.strictness, lambda v: 0 <= v <= 1, "a number from 0, IID, to 1, sorted")

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; every sample is used once."""
        check_clients(self.num_partitions, len(labels))
        y = np.asarray(labels)
        if y.ndim != 1 or y.dtype.kind not in "iuf":
            raise PartitionError(
                f"ContinuousPartitioner sorts by one number a sample, got {y.dtype} of shape {list(y.shape)}: use"
                " IidPartitioner, or one by sizes or clients"
            )
        y = y.astype(np.float64)
        if not np.isfinite(y).all():
            raise PartitionError(f"target {int(np.argmin(np.isfinite(y)))} is not finite: expected numbers in all")
        if not y.std() and self.strictness:
            raise PartitionError(f"all targets are {y[0]:g}, by which nothing is sorted: set strictness to 0")
        rng = generator(seed)
        z = (y - y.mean()) / (y.std() or 1.0)
        order = np.argsort(self.strictness * z + (1 - self.strictness) * rng.standard_normal(len(y)), kind="stable")
        owner = np.repeat(np.arange(self.num_partitions), even_sizes(len(y), self.num_partitions))
        mixed = rng.permutation(len(y))                    # within a client, whose samples are shuffled
        return by_owner(order[mixed], owner[mixed], self.num_partitions, describe(self, seed))
