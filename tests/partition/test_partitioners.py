"""Promises of every partitioner: each sample at most once, sizes that add up, the same for the same seed."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from fedsim.errors import PartitionError
from fedsim.partition import (
    PARTITIONERS,
    ClientDirichletPartitioner,
    ContinuousPartitioner,
    DirichletPartitioner,
    DistributionPartitioner,
    ExponentialPartitioner,
    GroupedNaturalIdPartitioner,
    IdToSizeFncPartitioner,
    IidPartitioner,
    InnerDirichletPartitioner,
    LinearPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
    SquarePartitioner,
)

DIGITS = load_digits().target
WRITERS = np.arange(len(DIGITS)) % 43
WHOLE: list[Partitioner] = [
    IidPartitioner(7),
    DirichletPartitioner(10, 0.3),
    DirichletPartitioner(10, 0.3, self_balancing=True),
    DirichletPartitioner(50, 0.05, min_partition_size=20),
    InnerDirichletPartitioner([997, 500, 300], 0.2),
    PathologicalPartitioner(15, 2, "first-deterministic"),
    PathologicalPartitioner(15, 2, "deterministic"),
    ShardPartitioner(10, shard_size=20, keep_incomplete_shard=True),
    SizePartitioner([1000, 0, 797]),
    LinearPartitioner(9),
    SquarePartitioner(9),
    ExponentialPartitioner(6),
    NaturalIdPartitioner(),
    GroupedNaturalIdPartitioner(group_size=4),
    GroupedNaturalIdPartitioner(num_partitions=4),
    GroupedNaturalIdPartitioner(group_size=4, mode="allow-bigger"),
    IdToSizeFncPartitioner(9, np.sqrt),
    DistributionPartitioner([[3.0, 1.0, 1.0, 2.0]] * 10, 20, 2, 5),
    ContinuousPartitioner(7, 0.6),
]
PART: list[Partitioner] = [
    InnerDirichletPartitioner([100, 50, 30], 0.2),
    PathologicalPartitioner(3, 2),
    ShardPartitioner(10, num_shards_per_partition=3),
    ShardPartitioner(10, num_shards_per_partition=3, shard_size=7),
    SizePartitioner([100, 20]),
    NaturalIdPartitioner(max_clients=5),
    NaturalIdPartitioner(min_size=42),
    GroupedNaturalIdPartitioner(group_size=4, mode="drop-reminder"),
    DistributionPartitioner([[30, 1], [2, 40]] * 5, 10, 2, rescale=False),
]
ALL = [*WHOLE, *PART, ClientDirichletPartitioner(20, 0.2)]
CLASS_BASED = (
    DirichletPartitioner(3, 1.0),
    InnerDirichletPartitioner([3, 4], 1.0),
    ClientDirichletPartitioner(3, 1.0),
    PathologicalPartitioner(3, 1),
    ShardPartitioner(3, 2),
)


def test_the_table_names_every_partitioner() -> None:
    assert {type(partitioner) for partitioner in ALL} == set(PARTITIONERS)


@pytest.mark.parametrize("partitioner", ALL, ids=repr)
def test_one_seed_repeats_and_the_scheme_records_it(partitioner: Any) -> None:
    first = partitioner.partition(DIGITS, WRITERS, 3)
    assert first.hash == partitioner.partition(DIGITS.copy(), WRITERS.copy(), 3).hash
    assert first.scheme["name"] == type(partitioner).__name__
    assert first.scheme["seed"] == 3
    assert json.loads(json.dumps(first.scheme)) == first.scheme
    assert pickle.loads(pickle.dumps(first)).hash == first.hash
    assert hash(partitioner) == hash(pickle.loads(pickle.dumps(partitioner)))


@pytest.mark.parametrize("partitioner", ALL, ids=repr)
def test_two_seeds_differ(partitioner: Any) -> None:
    differ = partitioner.partition(DIGITS, WRITERS, 0).hash != partitioner.partition(DIGITS, WRITERS, 1).hash
    assert differ == (not isinstance(partitioner, NaturalIdPartitioner) or partitioner.max_clients is not None)


@pytest.mark.parametrize("partitioner", WHOLE, ids=repr)
def test_every_sample_is_used_once(partitioner: Any) -> None:
    partition = partitioner.partition(DIGITS, WRITERS, 0)
    np.testing.assert_array_equal(np.sort(partition.indices), np.arange(len(DIGITS)))
    assert partition.sizes.sum() == len(DIGITS)


@pytest.mark.parametrize("partitioner", PART, ids=repr)
def test_partial_schemes_use_no_sample_twice(partitioner: Any) -> None:
    partition = partitioner.partition(DIGITS, WRITERS, 0)
    assert len(np.unique(partition.indices)) == len(partition.indices) < len(DIGITS)


@pytest.mark.parametrize("partitioner", ALL, ids=repr)
def test_arguments_are_not_changed(partitioner: Any) -> None:
    labels, natural = DIGITS.copy(), WRITERS.copy()
    partitioner.partition(labels, natural, 0)
    np.testing.assert_array_equal(labels, DIGITS)
    np.testing.assert_array_equal(natural, WRITERS)


@pytest.mark.parametrize("partitioner", [p for p in ALL if "Natural" not in type(p).__name__], ids=repr)
def test_shards_are_in_random_order(partitioner: Any) -> None:
    partition = partitioner.partition(DIGITS, WRITERS, 0)
    largest = partition.shard(int(partition.sizes.argmax()))
    steps = np.diff(DIGITS[largest])
    assert (np.diff(largest) < 0).any()
    assert len(np.unique(DIGITS[largest])) == 1 or ((steps < 0).any() and (steps > 0).any())


@settings(max_examples=80)
@given(st.data())
def test_any_feasible_request_covers_each_sample_once(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 120), "total")
    labels = np.array(data.draw(st.lists(st.integers(-3, 5), min_size=total, max_size=total), "labels"))
    n = data.draw(st.integers(1, total), "n")
    minimum = data.draw(st.integers(0, total // n), "minimum")
    alpha = data.draw(st.floats(1e-3, 1e3), "alpha")
    seed = data.draw(st.integers(0, 2**40), "seed")
    even = IidPartitioner(n).partition(labels, None, seed)
    assert np.ptp(even.sizes) <= 1
    skewed = DirichletPartitioner(n, alpha, minimum, data.draw(st.booleans())).partition(labels, None, seed)
    assert skewed.sizes.min() >= minimum
    inner = InnerDirichletPartitioner(even.sizes.tolist(), alpha).partition(labels, None, seed)
    np.testing.assert_array_equal(inner.sizes, even.sizes)
    sharded = ShardPartitioner(n, shard_size=1).partition(labels, None, seed)
    grouped = GroupedNaturalIdPartitioner(group_size=1).partition(labels, labels, seed)
    for partition in (even, skewed, inner, sharded, grouped):
        np.testing.assert_array_equal(np.sort(partition.indices), np.arange(total))
    assert ClientDirichletPartitioner(n, alpha).partition(labels, None, seed).sizes.sum() == total


@pytest.mark.parametrize(
    "partitioner",
    [
        IidPartitioner(10_000),
        DirichletPartitioner(10_000, 0.1, min_partition_size=1),
        DirichletPartitioner(10_000, 0.1, min_partition_size=6, self_balancing=True),
        InnerDirichletPartitioner([6] * 10_000, 0.1),
        ClientDirichletPartitioner(10_000, 0.1),
        PathologicalPartitioner(10_000, 2),
        ShardPartitioner(10_000, 2),
        SizePartitioner([6] * 10_000),
        NaturalIdPartitioner(),
        GroupedNaturalIdPartitioner(num_partitions=10_000),
    ],
    ids=lambda p: type(p).__name__,
)
def test_ten_thousand_clients(partitioner: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    partition = partitioner.partition(labels, np.arange(60_000) % 10_000, 0)
    assert partition.n == 10_000
    assert partition.sizes.min() >= 1
    assert partition.sizes.sum() == 60_000


@pytest.mark.parametrize("partitioner", CLASS_BASED, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("labels", [np.zeros((9, 5), np.int64), np.zeros(9, np.float32)], ids=["text", "regression"])
def test_class_based_schemes_refuse_targets_without_classes(partitioner: Any, labels: np.ndarray) -> None:
    with pytest.raises(PartitionError, match=f"{type(partitioner).__name__} divides by class .* use IidPartitioner"):
        partitioner.partition(labels, None, 0)


def test_text_can_be_divided_without_labels() -> None:
    text, natural = np.zeros((9, 5), np.int64), np.repeat([4, 2, 7], 3)
    for partitioner in (IidPartitioner(3), SizePartitioner([4, 5]), LinearPartitioner(2), NaturalIdPartitioner()):
        assert partitioner.partition(text, natural, 0).sizes.sum() == 9


@pytest.mark.parametrize("partitioner", [IidPartitioner(2), CLASS_BASED[0]], ids=repr)
@pytest.mark.parametrize("seed", [-1, 0.5])
def test_seed_must_be_a_natural_number(partitioner: Any, seed: Any) -> None:
    with pytest.raises(PartitionError, match="seed must be an integer of 0 or more"):
        partitioner.partition(DIGITS, None, seed)


@pytest.mark.parametrize(
    ("partitioner", "sizes"),
    [
        (IidPartitioner(4), [3, 3, 2, 2]),
        (LinearPartitioner(4), [1, 2, 3, 4]),
        (SquarePartitioner(3), [0, 0, 0]),
        (ExponentialPartitioner(3), [0, 0, 0]),
        (SizePartitioner([2, 0, 5]), [2, 0, 5]),
    ],
    ids=repr,
)
def test_sizes_by_hand(partitioner: Any, sizes: list[int]) -> None:
    total = 10 if sum(sizes) else 1000
    expected = {
        SquarePartitioner: [71, 285, 644],               # 1/14, 4/14, 9/14 of 1000, the remainder to the last
        ExponentialPartitioner: [90, 244, 666],          # e^i / (e + e^2 + e^3)
    }.get(type(partitioner), sizes)
    assert partitioner.partition(np.zeros(total), None, 0).sizes.tolist() == expected


@pytest.mark.parametrize("kind", [LinearPartitioner, SquarePartitioner, ExponentialPartitioner])
def test_the_largest_feasible_number_is_named_and_feasible(kind: Any) -> None:
    with pytest.raises(PartitionError, match=r"num_partitions may be (\d+)") as caught:
        kind(500).partition(DIGITS, None, 0)
    largest = int(str(caught.value).split()[-1])
    assert kind(largest).partition(DIGITS, None, 0).sizes.min() >= 1
    with pytest.raises(PartitionError, match=f"may be {largest}"):
        kind(largest + 1).partition(DIGITS, None, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IidPartitioner(0), "num_partitions must be an integer of 1 or more, got 0"),
        (lambda: LinearPartitioner(2.5), "num_partitions must be an integer of 1 or more, got 2.5"),  # type: ignore[arg-type]
        (lambda: IidPartitioner(True), "num_partitions must be an integer"),
        (lambda: IidPartitioner(1798).partition(DIGITS, None, 0), "num_partitions may be 1797"),
        (lambda: SizePartitioner([-1, 5]), "partition_sizes must be an integer of 0 or more, got -1"),
        (lambda: SizePartitioner([]), "at least one client"),
        (lambda: SizePartitioner([0, 0]), "at least one client"),
        (lambda: SizePartitioner([1797, 1]).partition(DIGITS, None, 0), "may sum to 1797 at most"),
        (lambda: NaturalIdPartitioner(min_size=0), "min_size must be an integer of 1 or more"),
        (lambda: NaturalIdPartitioner().partition(DIGITS, None, 0), "no natural clients"),
        (lambda: NaturalIdPartitioner().partition(DIGITS, WRITERS[1:], 0), "one id to each of 1797 samples"),
        (lambda: NaturalIdPartitioner(43).partition(DIGITS, WRITERS, 0), "the largest client owns 42"),
        (lambda: NaturalIdPartitioner(1, 44).partition(DIGITS, WRITERS, 0), "max_clients may be 43"),
        (lambda: GroupedNaturalIdPartitioner(), "give one of group_size and num_partitions"),
        (lambda: GroupedNaturalIdPartitioner(2, 2), "give one of group_size and num_partitions"),
        (lambda: GroupedNaturalIdPartitioner(44).partition(DIGITS, WRITERS, 0), "group_size=44 .* may be 43"),
        (lambda: GroupedNaturalIdPartitioner(None, 44).partition(DIGITS, WRITERS, 0), "num_partitions=44 .* may be 43"),
    ],
)
def test_infeasible_requests_say_what_is_feasible(make: Any, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        make()


def test_natural_clients_are_the_owners_in_order_of_id() -> None:
    natural = np.array([7, 3, 7, 9, 3, 7])
    partition = NaturalIdPartitioner().partition(np.zeros(6), natural, 0)
    assert [partition.shard(i).tolist() for i in range(partition.n)] == [[1, 4], [0, 2, 5], [3]]
    partition = NaturalIdPartitioner(min_size=2).partition(np.zeros(6), natural, 0)
    assert [partition.shard(i).tolist() for i in range(partition.n)] == [[1, 4], [0, 2, 5]]


@pytest.mark.parametrize("ids", [[0, 0, 1, 2, 2], [5, 5, 6, 9, 9], [2, 0, 1, 0, 2], [9, 5, 6, 5, 9]])
def test_natural_ids_may_be_sorted_and_consecutive_or_not(ids: list[int]) -> None:
    natural = np.array(ids)
    partition = NaturalIdPartitioner().partition(np.zeros(5, int), natural, 0)
    for i, owner in enumerate(sorted(set(ids))):
        assert partition.shard(i).tolist() == np.flatnonzero(natural == owner).tolist()
    natural[:] = 0                                         # still the caller's
    assert sorted(partition.indices) == [0, 1, 2, 3, 4]


def test_max_clients_keeps_whole_owners() -> None:
    partition = NaturalIdPartitioner(min_size=42, max_clients=10).partition(DIGITS, WRITERS, 0)
    owners = [np.unique(WRITERS[partition.shard(i)]) for i in range(partition.n)]
    assert partition.sizes.tolist() == [42] * 10
    assert all(len(owner) == 1 for owner in owners)
    assert np.all(np.diff(np.concatenate(owners)) > 0)


@pytest.mark.parametrize(
    ("partitioner", "groups"),
    [
        (GroupedNaturalIdPartitioner(group_size=10), [3, 10, 10, 10, 10]),
        (GroupedNaturalIdPartitioner(num_partitions=4), [10, 11, 11, 11]),
    ],
    ids=repr,
)
def test_groups_hold_whole_owners(partitioner: Any, groups: list[int]) -> None:
    partition = partitioner.partition(DIGITS, WRITERS, 0)
    owners = [set(WRITERS[partition.shard(i)]) for i in range(partition.n)]
    assert sorted(map(len, owners)) == groups
    assert sum(map(len, owners)) == len(set.union(*owners)) == 43
