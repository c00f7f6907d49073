"""Pathological and shard partitions: the classes of each client, and shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedsim.errors import PartitionError
from fedsim.partition import Partition, PathologicalPartitioner, ShardPartitioner

DIGITS = load_digits().target


def classes_of(partition: Partition, labels: np.ndarray) -> list[set[int]]:
    return [set(labels[partition.shard(i)].tolist()) for i in range(partition.n)]


@pytest.mark.parametrize("mode", ["random", "deterministic", "first-deterministic"])
@pytest.mark.parametrize("each", [1, 2, 7, 10])
def test_every_client_holds_exactly_the_requested_number_of_classes(mode: Any, each: int) -> None:
    held = classes_of(PathologicalPartitioner(33, each, mode).partition(DIGITS, None, 0), DIGITS)
    assert [len(classes) for classes in held] == [each] * 33
    if mode == "deterministic":
        assert held[28] == {(28 + j) % 10 for j in range(each)}
    if mode == "first-deterministic":
        assert all(i % 10 in classes for i, classes in enumerate(held))


def test_holders_share_a_class_evenly_and_completely() -> None:
    partition = PathologicalPartitioner(33, 3).partition(DIGITS, None, 0)
    for c in range(10):
        shares = [(DIGITS[partition.shard(i)] == c).sum() for i in range(33)]
        shares = [share for share in shares if share]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) == (c == DIGITS).sum()


def test_classes_nobody_holds_are_dropped() -> None:
    partition = PathologicalPartitioner(4, 1, "deterministic").partition(DIGITS, None, 0)
    assert set.union(*classes_of(partition, DIGITS)) == {0, 1, 2, 3}
    assert len(partition.indices) == (DIGITS < 4).sum()


def test_labels_need_not_count_from_zero() -> None:
    labels = np.array([-5, 70, 70, -5, 8, 8])
    held = classes_of(PathologicalPartitioner(3, 2, "deterministic").partition(labels, None, 0), labels)
    assert held == [{-5, 8}, {8, 70}, {70, -5}]


def test_pathological_names_the_largest_feasible_number_of_clients() -> None:
    labels = np.repeat(np.arange(4), [5, 50, 50, 50])
    for mode in ("random", "deterministic", "first-deterministic"):
        with pytest.raises(PartitionError, match=r"class 0, which has 5 samples") as caught:
            PathologicalPartitioner(60, 2, mode).partition(labels, None, 0)
        largest = int(str(caught.value).split("may be ")[1].split()[0])
        assert PathologicalPartitioner(largest, 2, mode).partition(labels, None, 0).n == largest
        with pytest.raises(PartitionError, match=f"num_partitions may be {largest} "):
            PathologicalPartitioner(largest + 1, 2, mode).partition(labels, None, 0)


@pytest.mark.parametrize(
    ("partitioner", "sizes"),
    [
        (ShardPartitioner(10, num_shards_per_partition=2), [178] * 10),                  # 20 shards of 89
        (ShardPartitioner(10, num_shards_per_partition=2, shard_size=50), [100] * 10),
        (ShardPartitioner(9, shard_size=100), [200] * 8 + [100]),                        # 17 shards
        (ShardPartitioner(9, shard_size=100, keep_incomplete_shard=True), None),         # 18, one of 97
    ],
    ids=repr,
)
def test_shard_sizes(partitioner: ShardPartitioner, sizes: list[int] | None) -> None:
    partition = partitioner.partition(DIGITS, None, 0)
    if sizes is None:
        assert sorted(partition.sizes) == [197] + [200] * 8
    else:
        assert partition.sizes.tolist() == sizes


def test_shards_are_blocks_of_the_data_sorted_by_class() -> None:
    labels = np.tile(np.arange(10), 20)                        # 20 samples of each class, so 2 shards of 10 in each
    partitioner = ShardPartitioner(10, num_shards_per_partition=2)
    held, other = (classes_of(partitioner.partition(labels, None, seed), labels) for seed in range(2))
    assert {len(classes) for classes in held} <= {1, 2}
    assert held != other, "shards are dealt at random"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PathologicalPartitioner(5, 0), "num_classes_per_partition must be an integer of 1 or more"),
        (lambda: PathologicalPartitioner(5, 2, "determinstic"), "did you mean 'deterministic'"),  # type: ignore[arg-type]
        (lambda: PathologicalPartitioner(5, 11).partition(DIGITS, None, 0), "num_classes_per_partition may be 10"),
        (lambda: ShardPartitioner(5), "give num_shards_per_partition .*, or shard_size, or both"),
        (lambda: ShardPartitioner(5, 0), "num_shards_per_partition must be an integer of 1 or more"),
        (lambda: ShardPartitioner(1000, 2).partition(DIGITS, None, 0), "num_partitions may be 898"),
        (lambda: ShardPartitioner(10, 2, 90).partition(DIGITS, None, 0), "num_partitions may be 9"),
        (lambda: ShardPartitioner(18, None, 100).partition(DIGITS, None, 0), "num_partitions may be 17"),
        (lambda: ShardPartitioner(19, None, 100, True).partition(DIGITS, None, 0), "num_partitions may be 18"),
        (lambda: ShardPartitioner(10, 2, 90, True).partition(DIGITS, None, 0), "num_partitions may be 9"),
    ],
)
def test_infeasible_requests_say_what_is_feasible(make: Any, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        make()
