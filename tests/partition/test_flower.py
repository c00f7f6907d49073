"""The partitioners that have their names from Flower Datasets, against these and against what they promise."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedsim import Experiment
from fedsim.errors import ConfigError, PartitionError
from fedsim.experiment.config import from_config, to_config
from fedsim.partition import (
    ContinuousPartitioner,
    DistributionPartitioner,
    ExponentialPartitioner,
    FlowerPartitioner,
    GroupedNaturalIdPartitioner,
    IdToSizeFncPartitioner,
    LinearPartitioner,
    Partition,
    SquarePartitioner,
)

rng = np.random.default_rng(3)
LABELS = rng.permutation(np.repeat(np.arange(5), (100, 120, 140, 160, 180)))
N = len(LABELS)
POWER = rng.lognormal(0, 2, (5, 4))
OWNERS = rng.integers(0, 23, N)
VALUES = rng.gamma(2.0, 3.0, N)


def counts(partition: Partition, labels: np.ndarray = LABELS) -> np.ndarray:
    """Samples of each class that each client has ``[n, C]``."""
    return np.stack([np.bincount(labels[partition.shard(i)], minlength=5) for i in range(partition.n)])


@pytest.fixture
def flower() -> Any:
    return pytest.importorskip("flwr_datasets.partitioner", reason="the extra huggingface is not installed")


def theirs(partitioner: Any, column: str, values: np.ndarray) -> list[np.ndarray]:
    """Rows of each client of a partitioner of Flower Datasets."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({column: values, "row": np.arange(len(values))})
    return [np.asarray(partitioner.load_partition(k)["row"][:]) for k in range(partitioner.num_partitions)]


def test_sizes_by_number_are_those_of_flower(flower: Any) -> None:
    for mine, other in (
        (LinearPartitioner(9), flower.LinearPartitioner(num_partitions=9)),
        (SquarePartitioner(9), flower.SquarePartitioner(num_partitions=9)),
        (ExponentialPartitioner(5), flower.ExponentialPartitioner(num_partitions=5)),
        (IdToSizeFncPartitioner(9, np.sqrt), flower_function(flower)),
    ):
        assert mine.partition(LABELS, None, 0).sizes.tolist() == [*map(len, theirs(other, "label", LABELS))]


def flower_function(flower: Any) -> Any:
    from flwr_datasets.partitioner.id_to_size_fnc_partitioner import IdToSizeFncPartitioner as Theirs

    return Theirs(9, np.sqrt)


@pytest.mark.parametrize("first", [0, 3])
def test_distributions_are_those_of_flower_but_for_the_place_of_the_rest(flower: Any, first: int) -> None:
    mine = counts(DistributionPartitioner(POWER.tolist(), 10, 2, first).partition(LABELS, None, 0))
    other = flower.DistributionPartitioner(POWER, 10, 2, "label", first)
    found = np.stack([np.bincount(LABELS[rows], minlength=5) for rows in theirs(other, "label", LABELS)])
    assert ((mine > 0) <= (found > 0) | (mine < 5)).all()
    for c in range(5):                                     # at most two holders differ: the rest went to one of each
        assert np.count_nonzero(mine[:, c] != found[:, c]) in (0, 2) and mine[:, c].sum() == found[:, c].sum()
    exact = np.array([[30, 1, 20, 9]] * 5)
    asked = DistributionPartitioner(exact.tolist(), 10, 2, rescale=False).partition(LABELS, None, 0)
    other = flower.DistributionPartitioner(exact, 10, 2, "label", 0, rescale=False)
    rows = theirs(other, "label", LABELS)
    np.testing.assert_array_equal(counts(asked), [np.bincount(LABELS[k], minlength=5) for k in rows])


@pytest.mark.parametrize("mode", ["allow-smaller", "allow-bigger", "drop-reminder", "strict"])
def test_groups_of_natural_clients_are_those_of_flower(flower: Any, mode: Any) -> None:
    for size in (1, 4, 5, 23):
        mine: Any = GroupedNaturalIdPartitioner(size, mode=mode, sort_unique_ids=True)
        other = flower.GroupedNaturalIdPartitioner("who", size, mode, sort_unique_ids=True)
        if mode == "strict" and 23 % size:
            with pytest.raises(PartitionError, match=r"leaves [23] of 23 natural clients, and mode is strict: it may"):
                mine.partition(LABELS, OWNERS, 0)
            continue
        expected = theirs(other, "who", OWNERS)
        found = mine.partition(LABELS, OWNERS, 0)
        assert [sorted(found.shard(k)) for k in range(found.n)] == [sorted(rows) for rows in expected]


def test_strict_order_of_a_target_is_that_of_flower(flower: Any) -> None:
    expected = theirs(flower.ContinuousPartitioner(num_partitions=6, partition_by="y", strictness=1.0), "y", VALUES)
    found = ContinuousPartitioner(6, 1.0).partition(VALUES, None, 0)
    assert [sorted(found.shard(k)) for k in range(6)] == [sorted(rows) for rows in expected]


def test_noise_mixes_a_target_as_much_as_flower_s(flower: Any) -> None:
    """Share of the variance of targets between clients, over 40 draws."""

    def between(parts: list[np.ndarray]) -> float:
        return float(np.var([VALUES[rows].mean() for rows in parts]) / VALUES.var())

    for strictness in (0.0, 0.5, 0.8):
        mine, others = [], []
        for seed in range(40):
            found = ContinuousPartitioner(6, strictness).partition(VALUES, None, seed)
            mine.append(between([found.shard(k) for k in range(6)]))
            made = flower.ContinuousPartitioner(6, "y", strictness, seed=seed)
            others.append(between(theirs(made, "y", VALUES)))
        error = 4 * (np.std(mine) + np.std(others)) / np.sqrt(40)
        assert abs(np.mean(mine) - np.mean(others)) < error


def test_a_target_s_order_without_noise_and_none_of_it_with_noise_alone() -> None:
    strict = ContinuousPartitioner(6, 1.0).partition(VALUES, None, 0)
    parts = [VALUES[strict.shard(k)] for k in range(6)]
    assert all(a.max() <= b.min() for a, b in pairwise(parts))
    mixed = ContinuousPartitioner(6, 0.0).partition(VALUES, None, 0)
    means = [VALUES[mixed.shard(k)].mean() for k in range(6)]
    assert np.ptp(means) < 6 * VALUES.std() / np.sqrt(N / 6)
    assert strict.sizes.tolist() == mixed.sizes.tolist() == [117] * 4 + [116] * 2


def test_shares_of_a_class_follow_its_row() -> None:
    shares = np.array([[1.0, 3.0], [1.0, 1.0], [9.0, 1.0], [0.0, 1.0], [2.0, 2.0]])
    found = counts(DistributionPartitioner(shares.tolist(), 5, 2, 4).partition(LABELS, None, 0))
    sizes = np.bincount(LABELS)
    for c in range(5):
        holders = [i for i in range(5) if c in (i, (i + 1) % 5)]
        expected = 4 + (sizes[c] - 8) * shares[c] / shares[c].sum()
        assert (np.abs(found[holders, c] - expected) <= 1).all() and found[:, c].sum() == sizes[c]


@pytest.mark.parametrize(
    ("partitioner", "labels", "message"),
    [
        (ContinuousPartitioner(6, 0.5), np.ones(N), "all targets are 1, by which nothing is sorted: set strictness"),
        (ContinuousPartitioner(6, 0.5), np.full(N, np.nan), "target 0 is not finite"),
        (ContinuousPartitioner(6, 0.5), np.ones((N, 2)), "sorts by one number a sample"),
        (ContinuousPartitioner(N + 1, 0.5), VALUES, "num_partitions may be 700"),
        (DistributionPartitioner([[1.0]] * 4, 5, 1), LABELS, r"has the shape \[4, 1\]; expected \[5, 1\]"),
        (DistributionPartitioner([[1.0]] * 5, 7, 1), LABELS, "num_partitions must be a multiple of 5"),
        (DistributionPartitioner([[1.0]] * 5, 5, 6), LABELS, "num_unique_labels_per_partition may be 5 at most"),
        (DistributionPartitioner([[1.0]] * 5, 5, 1, 101), LABELS, "of class 0, which has 100 samples: it may be 100"),
        (DistributionPartitioner([[900]] * 5, 5, 1, rescale=False), LABELS, "asks for 900 samples of class 0, which"),
        (DistributionPartitioner([[0.5]] * 5, 5, 1, rescale=False), LABELS, "client 0 gets no samples"),
        (IdToSizeFncPartitioner(3, lambda i: i - 2), LABELS, r"returned array\(\[-1.*expected as many finite numbers"),
        (IdToSizeFncPartitioner(3, lambda i: i[:1]), LABELS, "for the clients 1 to 3"),
        (IdToSizeFncPartitioner(60, lambda i: 1 / i**3), LABELS, "num_partitions may be "),
    ],
)
def test_requests_that_cannot_be_met(partitioner: Any, labels: np.ndarray, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        partitioner.partition(labels, None, 0)


def test_settings_are_checked_when_they_are_given() -> None:
    for make, message in (
        (lambda: ContinuousPartitioner(3, 1.5), r"strictness is 1\.5; expected a number from 0, IID, to 1"),
        (lambda: DistributionPartitioner([[1.0], [1.0, 2.0]], 2, 1), "rows of unequal length"),
        (lambda: DistributionPartitioner([[0.0], [1.0]], 2, 1), "one above 0 in each row"),
        (lambda: IdToSizeFncPartitioner(3, 7), "partition_id_to_size_fn is 7; expected a function"),  # type: ignore[arg-type]
        (lambda: GroupedNaturalIdPartitioner(3, mode="loose"), "mode is 'loose'; known: allow-smaller"),  # type: ignore[arg-type]
        (lambda: GroupedNaturalIdPartitioner(num_partitions=3, mode="strict"), "which is of group_size"),
    ):
        with pytest.raises((PartitionError, ConfigError), match=message):
            make()


def test_they_are_settings_of_files_too() -> None:
    for settings in (
        {"name": "DistributionPartitioner", "distribution_array": [[1, 2], [3, 4]], "num_partitions": 4,
         "num_unique_labels_per_partition": 1},
        {"name": "ContinuousPartitioner", "num_partitions": 4, "strictness": 0.5},
        {"name": "IdToSizeFncPartitioner", "num_partitions": 4, "partition_id_to_size_fn": "numpy.sqrt"},
        {"name": "GroupedNaturalIdPartitioner", "group_size": 4, "mode": "strict"},
    ):  # fmt: skip
        case = from_config({"algorithm": "FedAvg", "partition": settings})
        assert isinstance(case, Experiment) and from_config(to_config(case)) == case
        for key, value in settings.items():
            assert to_config(case)["partition"][key] == value


def test_what_flower_would_try_in_vain_is_told_at_once(flower: Any) -> None:
    def dirichlet(n: int, alpha: float, least: int) -> FlowerPartitioner:
        return FlowerPartitioner(flower.DirichletPartitioner(n, "label", alpha, least, seed=1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")                     # it warns at each attempt
        for case, message in (
            (dirichlet(30, 0.05, 10), r"in 200 draws .* the smallest of 30 partitions had \d samples at most.*in vain"),
            (dirichlet(10, 0.5, 71), "10 partitions of at least 71 of 700 samples; min_partition_size may be 70"),
            (FlowerPartitioner(flower.IidPartitioner(701)), "701 partitions of 700 samples; num_partitions may be 700"),
            (FlowerPartitioner(flower.VerticalEvenPartitioner(2)), "divides features among clients, which no method"),
        ):
            with pytest.raises(PartitionError, match=message):
                case.partition(LABELS, None, 0)
        assert dirichlet(10, 5.0, 10).partition(LABELS, None, 0).sizes.min() >= 10


def test_real_targets_and_groups_go_to_flower_s_own(flower: Any) -> None:
    made = flower.ContinuousPartitioner(num_partitions=6, partition_by="y", strictness=1.0)
    assert FlowerPartitioner(made).partition(VALUES, None, 0).n == 6
    made = flower.GroupedNaturalIdPartitioner("who", 5, sort_unique_ids=True)
    assert FlowerPartitioner(made).partition(LABELS, OWNERS, 0).n == 5
