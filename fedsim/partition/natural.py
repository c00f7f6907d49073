"""Partitioners by the natural owner of each sample: writer, subject, speaking role, hospital."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fedsim.errors import PartitionError, suggest
from fedsim.partition.deal import by_owner, check_count, describe, generator
from fedsim.partition.partition import Partition

Mode = Literal["allow-smaller", "allow-bigger", "drop-reminder", "strict"]


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
        owner = natural if len(ids) == len(counts) else (np.cumsum(counts > 0) - 1)[natural]
        return ids.astype(natural.dtype), owner, counts[ids]
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
        if len(kept) == len(sizes):
            return by_owner(np.arange(len(owner)), owner, len(kept), describe(self, seed))
        client = np.full(len(sizes), -1)
        client[kept] = np.arange(len(kept))
        samples = np.flatnonzero(client[owner] >= 0)
        return by_owner(samples, client[owner[samples]], len(kept), describe(self, seed))


@dataclass(frozen=True)
class GroupedNaturalIdPartitioner:
    """Every client is a random group of natural owners, such as an organisation of users. Give one of the two numbers.

    The modes are those of Flower Datasets, and say what becomes of owners that fill no group of ``group_size``:
    ``allow-smaller`` makes a last, smaller group of them; ``allow-bigger`` gives one more to as many groups as needed,
    the first ones; ``drop-reminder`` leaves them out; ``strict`` refuses them.

    Args:
        group_size: owners in a group.
        num_partitions: number of groups, whose numbers of owners differ by at most one.
        mode: what becomes of the owners that are left.
        sort_unique_ids: group owners in the order of their ids, and not at random.
    """

    group_size: int | None = None
    num_partitions: int | None = None
    mode: Mode = "allow-smaller"
    sort_unique_ids: bool = False

    def __post_init__(self) -> None:
        check_count("group_size", self.group_size, optional=True)
        check_count("num_partitions", self.num_partitions, optional=True)
        if (self.group_size is None) == (self.num_partitions is None):
            given = f"group_size={self.group_size}, num_partitions={self.num_partitions}"
            raise PartitionError(f"give one of group_size and num_partitions, got {given}")
        if self.mode not in get_args(Mode):
            raise PartitionError(f"mode is {self.mode!r}; {suggest(str(self.mode), get_args(Mode))}")
        if self.num_partitions is not None and self.mode != "allow-smaller":
            raise PartitionError(f"mode is {self.mode!r}, which is of group_size: give that, or leave mode out")

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; no sample is used twice, and all are, unless mode is ``drop-reminder``."""
        ids, owner, _ = natural_owners(natural, len(labels))
        largest = self.group_size or self.num_partitions or 1
        if largest > len(ids):
            name = "group_size" if self.group_size else "num_partitions"
            raise PartitionError(f"{name}={largest} but there are {len(ids)} natural clients: it may be {len(ids)}")
        group = self._groups(len(ids))
        if not self.sort_unique_ids:
            group = generator(seed).permutation(group)
        samples = np.flatnonzero(group[owner] >= 0)
        return by_owner(samples, group[owner[samples]], int(group.max()) + 1, describe(self, seed))

    def _groups(self, n: int) -> np.ndarray:
        """Group ``[n]`` of each owner in order; -1 for none."""
        place = np.arange(n)
        if self.num_partitions is not None:
            return np.sort(place % self.num_partitions) if self.sort_unique_ids else place % self.num_partitions
        assert self.group_size is not None
        whole, rest = divmod(n, self.group_size)
        if rest and self.mode == "strict":
            near = [k for k in range(1, n + 1) if n % k == 0]
            raise PartitionError(
                f"group_size={self.group_size} leaves {rest} of {n} natural clients, and mode is strict: it may be"
                f" {min(near, key=lambda k: abs(k - (self.group_size or 0)))}, or choose another mode"
            )
        if self.mode == "allow-bigger":
            return np.repeat(np.arange(whole), n // whole + (np.arange(whole) < n % whole))
        group: np.ndarray = place // self.group_size
        return np.where(group < whole, group, -1) if self.mode == "drop-reminder" else group
