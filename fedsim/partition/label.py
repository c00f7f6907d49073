"""Partitioners that give each client a few classes only.

Names and parameters are those of Flower Datasets (github.com/adap/flower, datasets/flwr_datasets/partitioner).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fedsim.errors import PartitionError, many, suggest
from fedsim.partition.deal import by_owner, check_count, class_labels, describe, draw, generator, slots
from fedsim.partition.partition import Partition

Mode = Literal["random", "deterministic", "first-deterministic"]


def assign_classes(n: int, classes: int, each: int, mode: Mode, rng: np.random.Generator) -> np.ndarray:
    """``[n, C]`` bool, which classes each client holds, ``each`` in every row; row i does not depend on n."""
    preference: np.ndarray = rng.random((n, classes))
    clients = np.arange(n)[:, None]
    if mode == "deterministic":
        preference = (np.arange(classes) - clients) % classes
    elif mode == "first-deterministic":
        preference[clients, clients % classes] = -1
    holds = np.zeros((n, classes), bool)
    holds[clients, np.argsort(preference, axis=1)[:, :each]] = True
    return holds


@dataclass(frozen=True)
class PathologicalPartitioner:
    """Every client holds exactly ``num_classes_per_partition`` classes; holders of a class share it evenly.

    Source: Li et al., ICDE 2022 (arXiv:2102.02079), "#C = k", whose rule is ``first-deterministic``. Samples of a class
    that no client holds are dropped, as in Flower.

    Args:
        num_partitions: number of clients.
        num_classes_per_partition: number of classes of every client.
        class_assignment_mode: ``random`` draws each client's classes; ``deterministic`` gives client i the classes
            i, i+1, ... modulo the number of classes; ``first-deterministic`` gives it class i and draws the rest.
    """

    num_partitions: int
    num_classes_per_partition: int
    class_assignment_mode: Mode = "random"

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        check_count("num_classes_per_partition", self.num_classes_per_partition)
        modes, given = get_args(Mode), self.class_assignment_mode
        if given not in modes:
            raise PartitionError(f"class_assignment_mode is {given!r}; {suggest(str(given), modes)}")

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; no sample is used twice."""
        classes, label = class_labels(labels, self)
        n, each = self.num_partitions, self.num_classes_per_partition
        if each > len(classes):
            fix = f"num_classes_per_partition may be {len(classes)}"
            raise PartitionError(f"a client cannot hold {each} of {len(classes)} classes: {fix}")
        rng = generator(seed)
        holds = assign_classes(n, len(classes), each, self.class_assignment_mode, rng)
        rank, size, holders = holds.cumsum(axis=0) - 1, np.bincount(label), holds.sum(axis=0)
        if (holders > size).any():
            first, worst = int(np.argmax((rank >= size).any(axis=1))), int(np.argmax(holders - size))
            samples = many(size[worst], "sample")
            raise PartitionError(
                f"{holders[worst]} clients are to hold class {classes[worst]}, which has {samples}: "
                f"num_partitions may be {first} with this seed and mode, or lower num_classes_per_partition"
            )
        holders = np.maximum(holders, 1)
        counts = holds * (size // holders + (rank < size % holders))
        owner, wanted = slots(counts, rng)
        return by_owner(draw(label, wanted, rng), owner, n, describe(self, seed))


@dataclass(frozen=True)
class ShardPartitioner:
    """Samples sorted by class are cut into shards of equal size, and each client gets random shards.

    Source: McMahan et al., AISTATS 2017 (arXiv:1602.05629), who give two shards to each client. Give
    ``num_shards_per_partition`` (the shard size follows), or ``shard_size`` (the shards are dealt round, so that some
    clients may get one more), or both. Samples that fill no shard, and shards beyond the requested number, are dropped.

    Args:
        num_partitions: number of clients.
        num_shards_per_partition: number of shards of every client.
        shard_size: number of samples of a shard.
        keep_incomplete_shard: use the last, smaller shard too; has no effect where both numbers above are given.
    """

    num_partitions: int
    num_shards_per_partition: int | None = None
    shard_size: int | None = None
    keep_incomplete_shard: bool = False

    def __post_init__(self) -> None:
        check_count("num_partitions", self.num_partitions)
        check_count("num_shards_per_partition", self.num_shards_per_partition, optional=True)
        check_count("shard_size", self.shard_size, optional=True)
        if self.num_shards_per_partition is None and self.shard_size is None:
            raise PartitionError("give num_shards_per_partition (2 in the FedAvg paper), or shard_size, or both")

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``; no sample is used twice."""
        _, label = class_labels(labels, self)
        n, per_client, total = self.num_partitions, self.num_shards_per_partition, len(label)
        each = per_client or 1
        size = self.shard_size or max(1, total // (n * each))
        both = self.shard_size is not None and per_client is not None
        incomplete = self.keep_incomplete_shard and not both and total % size > 0
        available = total // size + incomplete
        if n * each > available:
            need = f"{n} clients with {each} or more shards of {size} samples need more than {total} samples"
            raise PartitionError(f"{need}: num_partitions may be {available // each}, or lower the other numbers")
        used = available if per_client is None else n * each
        rng = generator(seed)
        client_of_shard = np.full(available + 1, -1)              # the entry after the last shard is the dropped rest
        client_of_shard[rng.permutation(available)[:used]] = np.arange(used) % n
        samples = rng.permutation(total)
        samples = samples[np.argsort(label[samples], kind="stable")]
        owner = client_of_shard[np.arange(total) // size]
        samples, owner = samples[owner >= 0], owner[owner >= 0]
        order = rng.permutation(len(samples))
        return by_owner(samples[order], owner[order], n, describe(self, seed))
