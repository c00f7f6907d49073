"""Partitioners by the natural owner of each sample: writer, subject, speaking role, hospital."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import PartitionError
from fedsim.partition.deal import by_owner, check_count, describe, generator
from fedsim.partition.partition import Partition


def natural_owners(natural: np.ndarray | None, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Natural ids that occur ``[K]`` sorted, the position ``[N]`` of each sample's id among them, and their sizes."""
    if natural is None:
        raise PartitionError("this data set has no natural clients: use a partitioner that does not need them")
    natural = np.asarray(natural)
    if natural.shape != (total,) or not total:
        raise PartitionError(f"natural must give one id to each of {total} samples, got shape {list(natural.shape)}")
    if natural.dtype.kind in "iu" and natural.min() >= 0 and natural.max() < 4 * total:   # no need to sort them
        counts = np.bincount(natural)
        ids = np.flatnonzero(counts)
        return ids.astype(natural.dtype), (np.cumsum(counts > 0) - 1)[natural], counts[ids]
    ids, owner, sizes = np.unique(natural, return_inverse=True, return_counts=True)
    return ids, owner, sizes


@dataclass(frozen=True)
class NaturalIdPartitioner:
    """One client for each natural owner, in the order of their ids; samples keep the order of the data set.

    Args:
        min_size: owners with fewer samples are left out.
        max_clients: keep this many owners, drawn at random from the seed; None keeps all.
    """

    min_size: int = 1
    max_clients: int | None = None

    def __post_init__(self) -> None:
        check_count("min_size", self.min_size)
        check_count("max_clients", self.max_clients, optional=True)

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; every sample of a kept owner is used once."""
        _, owner, sizes = natural_owners(natural, len(labels))
        kept = np.flatnonzero(sizes >= self.min_size)
        if len(kept) < (self.max_clients or 1):
            raise PartitionError(
                f"{len(kept)} of {len(sizes)} natural clients own {self.min_size} samples or more: "
                f"max_clients may be {len(kept)}, or lower min_size (the largest client owns {sizes.max()})"
            )
        if self.max_clients is not None:
            kept = np.sort(generator(seed).permutation(kept)[: self.max_clients])
        client = np.full(len(sizes), -1)
        client[kept] = np.arange(len(kept))
        samples = np.flatnonzero(client[owner] >= 0)
        return by_owner(samples, client[owner[samples]], len(kept), describe(self, seed))


@dataclass(frozen=True)
class GroupedNaturalIdPartitioner:
    """Every client is a random group of natural owners, such as an organisation of users. Give one of the two numbers.

    Args:
        group_size: owners in a group; the last group may be smaller.
        num_partitions: number of groups, whose numbers of owners differ by at most one.
    """

    group_size: int | None = None
    num_partitions: int | None = None

    def __post_init__(self) -> None:
        check_count("group_size", self.group_size, optional=True)
        check_count("num_partitions", self.num_partitions, optional=True)
        if (self.group_size is None) == (self.num_partitions is None):
            given = f"group_size={self.group_size}, num_partitions={self.num_partitions}"
            raise PartitionError(f"give one of group_size and num_partitions, got {given}")

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; every sample is used once."""
        ids, owner, _ = natural_owners(natural, len(labels))
        largest = self.group_size or self.num_partitions or 1
        if largest > len(ids):
            name = "group_size" if self.group_size else "num_partitions"
            raise PartitionError(f"{name}={largest} but there are {len(ids)} natural clients: it may be {len(ids)}")
        place = np.arange(len(ids))
        group = place // self.group_size if self.group_size else place % largest
        group = generator(seed).permutation(group)
        return by_owner(np.arange(len(owner)), group[owner], int(group.max()) + 1, describe(self, seed))
