"""The three Dirichlet partitions: their distributions, limits, repair and pools."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.datasets import load_digits

from fedsim.errors import PartitionError
from fedsim.partition import ClientDirichletPartitioner, DirichletPartitioner, InnerDirichletPartitioner, card
from fedsim.partition.deal import draw, generator, rank_within
from fedsim.partition.dirichlet import DRAWS, draw_classes, raise_to_minimum, share_classes, turns

DIGITS = load_digits().target


def js(partitioner: Any, seed: int = 0) -> float:
    measured = card(partitioner.partition(DIGITS, None, seed), DIGITS, 10).js
    assert measured is not None
    return measured["mean"]


@pytest.mark.parametrize(
    "make",
    [
        lambda alpha: DirichletPartitioner(10, alpha),
        lambda alpha: DirichletPartitioner(10, alpha, self_balancing=True),
        lambda alpha: InnerDirichletPartitioner([179] * 10, alpha),
        lambda alpha: ClientDirichletPartitioner(10, alpha),
    ],
    ids=["class-wise", "balanced", "inner", "client-wise"],
)
def test_alpha_goes_from_skewed_to_iid(make: Any) -> None:
    distances = [js(make(alpha)) for alpha in (0.05, 1.0, 1e4)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.55
    assert distances[-1] < 0.15


def test_class_wise_shares_have_the_moments_of_the_dirichlet() -> None:
    counts = share_classes(np.full(3000, 10**6), np.full(10, 0.5), False, generator(0))
    share = counts / 10**6
    np.testing.assert_array_equal(counts.sum(axis=0), 10**6)
    np.testing.assert_allclose(share.mean(axis=1), 0.1, atol=0.01)
    np.testing.assert_allclose(share.var(axis=1), 0.1 * 0.9 / (10 * 0.5 + 1), atol=0.002)


def test_rounding_favours_no_client() -> None:
    counts = share_classes(np.full(5000, 2), np.ones(5), False, generator(0))
    np.testing.assert_array_equal(counts.sum(axis=0), 2)
    np.testing.assert_allclose(counts.sum(axis=1), 2000, rtol=0.1)


def test_one_alpha_for_each_client_sets_its_mean_share() -> None:
    counts = share_classes(np.full(3000, 10**6), np.array([1.0, 2.0, 5.0]), False, generator(0))
    np.testing.assert_allclose(counts.mean(axis=1) / 10**6, [1 / 8, 2 / 8, 5 / 8], atol=0.01)
    sizes = DirichletPartitioner(3, [1.0, 1.0, 50.0]).partition(DIGITS, None, 0).sizes
    assert sizes.argmax() == 2


def test_self_balancing_gives_nothing_to_clients_above_the_average() -> None:
    class_sizes = np.full(20, 300)
    counts = share_classes(class_sizes, np.full(8, 0.5), True, generator(0))
    before = np.cumsum(counts, axis=1) - counts
    full = before > class_sizes.sum() / 8
    assert full.any()
    assert counts[full].sum() == 0
    np.testing.assert_array_equal(counts.sum(axis=0), class_sizes)


@pytest.mark.parametrize("minimum", [5, 10, 28])
def test_a_minimum_that_retries_rarely_meet_is_repaired(minimum: int) -> None:
    labels = DIGITS[:1437]
    partition = DirichletPartitioner(50, 0.1, minimum).partition(labels, None, 0)
    assert partition.sizes.min() == minimum
    assert partition.scheme["draws"] == DRAWS
    assert partition.scheme["samples_moved"] != 0
    measured = card(partition, labels, 10).js
    assert measured is not None
    assert measured["mean"] > 0.5, "the repair must leave the clients skewed"


def test_a_minimum_that_is_met_moves_nothing() -> None:
    scheme = DirichletPartitioner(5, 10.0).partition(DIGITS, None, 0).scheme
    assert (scheme["draws"], scheme["samples_moved"]) == (1, 0)


def test_a_minimum_of_zero_allows_empty_clients() -> None:
    partition = DirichletPartitioner(2000, 0.01, min_partition_size=0).partition(DIGITS, None, 0)
    assert partition.n == 2000
    assert partition.sizes.min() == 0
    assert partition.scheme["draws"] == 1


def test_repair_by_hand() -> None:
    owner = np.array([0] * 10 + [1] * 6 + [3])
    repaired, moved = raise_to_minimum(owner, 4, 3)
    assert moved == 5
    assert np.bincount(repaired).tolist() == [6, 5, 3, 3]         # levelled down to 5, one sample less than that needs
    np.testing.assert_array_equal(repaired[6:10], [2, 2, 2, 3])   # the last samples of client 0
    assert repaired[15] == 3


@settings(max_examples=100)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_repair_moves_as_little_as_possible_and_takes_from_the_largest(owners: list[int], data: st.DataObject) -> None:
    n, owner = 7, np.array(owners)
    minimum = data.draw(st.integers(0, len(owners) // n))
    before = np.bincount(owner, minlength=n)
    repaired, moved = raise_to_minimum(owner, n, minimum)
    after = np.bincount(repaired, minlength=n)
    assert after.min() >= minimum
    assert moved == np.maximum(minimum - before, 0).sum() == (repaired != owner).sum()
    givers = after < before
    if givers.any():
        assert after[givers].min() >= after[~givers & (before >= minimum)].max(initial=0) - 1


def exact(prior: np.ndarray, owner: list[int], sizes: list[int]) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of classes, place after place, a class that has run out left out."""
    table = {}
    for classes in itertools.product(range(len(sizes)), repeat=len(owner)):
        left, chance = list(sizes), 1.0
        for place, c in zip(owner, classes, strict=True):
            weight = prior[place] * (np.array(left) > 0)
            chance *= weight[c] / weight.sum()
            left[c] -= 1
        table[classes] = chance
    return table


def test_inner_draws_have_the_distribution_of_the_sequential_process() -> None:
    prior, owner, sizes = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), [0, 1, 0, 0, 1], [2, 1, 3]
    expected = {classes: chance for classes, chance in exact(prior, owner, sizes).items() if chance > 0}
    rng, repeats = generator(0), 5000
    seen = dict.fromkeys(expected, 0)
    for _ in range(repeats):
        seen[tuple(draw_classes(prior, np.array(owner), np.array(sizes), rng).tolist())] += 1
    assert chisquare(list(seen.values()), repeats * np.array(list(expected.values()))).pvalue > 0.01


def test_inner_draws_each_client_uniformly_among_those_not_full() -> None:
    sizes = [4, 2, 1]
    expected: dict[tuple[int, ...], float] = {}
    for order in set(itertools.permutations(np.repeat(np.arange(3), sizes).tolist())):
        left, chance = list(sizes), 1.0
        for client in order:
            chance /= sum(size > 0 for size in left)
            left[client] -= 1
        expected[order] = chance
    rng, repeats = generator(0), 20_000
    seen = dict.fromkeys(expected, 0)
    for _ in range(repeats):
        seen[tuple(turns(sizes, rng).tolist())] += 1
    assert chisquare(list(seen.values()), repeats * np.array(list(expected.values()))).pvalue > 0.01


def published_inner(labels: np.ndarray, sizes: list[int], alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Counts ``[n, C]`` by the procedure of Acar et al.'s code: one client and one class at a time."""
    left, pool = list(sizes), np.bincount(labels)
    prior, counts = rng.dirichlet([alpha] * len(pool), len(sizes)), np.zeros((len(sizes), len(pool)), int)
    while sum(left):
        client = rng.integers(len(sizes))
        if left[client] <= 0:
            continue
        left[client] -= 1
        while True:
            c = int(np.argmax(rng.random() <= np.cumsum(prior[client]) / prior[client].sum()))
            if pool[c] <= 0:
                prior[:, c] = 1e-300                       # 0 there, which divides by 0 where nothing is left
                continue
            pool[c] -= 1
            counts[client, c] += 1
            break
    return counts


def test_inner_has_the_law_of_the_published_procedure() -> None:
    labels, sizes = np.repeat(np.arange(10), 30), [150, 70, 50, 10, 5, 5, 6, 4]

    def held(counts: np.ndarray) -> tuple[float, float]:
        return float((counts > 0).sum(0).max()), float((counts > 0).sum(1).mean())

    def counts(seed: int) -> np.ndarray:
        partition = InnerDirichletPartitioner(sizes, 0.2).partition(labels, None, seed)
        return np.array([np.bincount(labels[partition.shard(i)], minlength=10) for i in range(len(sizes))])

    ours = np.array([held(counts(seed)) for seed in range(200)])
    theirs = np.array([held(published_inner(labels, sizes, 0.2, generator(seed))) for seed in range(1000, 1200)])
    error = np.sqrt(ours.var(0) / 200 + theirs.var(0) / 200)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 3 * error).all(), (ours.mean(0), theirs.mean(0), error)


def test_inner_falls_back_to_what_is_left_when_a_whole_prior_has_run_out() -> None:
    prior = np.array([[1.0, 0.0, 0.0]])
    wanted = draw_classes(prior, np.zeros(10, np.int64), np.array([4, 3, 3]), generator(0))
    assert wanted[:4].tolist() == [0] * 4
    assert np.bincount(wanted).tolist() == [4, 3, 3]


def test_inner_takes_one_alpha_for_each_class() -> None:
    partition = InnerDirichletPartitioner([100] * 5, [50.0] + [0.5] * 9).partition(DIGITS, None, 0)
    drawn = np.bincount(DIGITS[partition.indices], minlength=10)
    assert drawn[0] == (DIGITS == 0).sum()                   # everyone wants class 0, so all of it is used


def test_rank_within() -> None:
    assert rank_within(np.array([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]


def test_an_exhausted_pool_is_refilled_as_it_was() -> None:
    label = np.array([0, 1, 0, 0])
    samples = draw(label, np.array([0, 0, 1, 0, 0, 0, 1]), generator(0))
    assert set(samples[[0, 1, 3]]) == {0, 2, 3}
    assert samples[4] == samples[0]
    assert samples[5] == samples[1]
    assert samples[2] == samples[6] == 1


def test_which_samples_of_a_class_are_drawn_is_random() -> None:
    first, second = (draw(np.zeros(100, np.int64), np.zeros(50, np.int64), generator(seed)) for seed in range(2))
    assert set(first) != set(second)
    assert len(set(first)) == len(set(second)) == 50


def test_client_wise_semantics_of_fl_simulator() -> None:
    partition = ClientDirichletPartitioner(100, 0.1).partition(DIGITS, None, 0)
    assert set(partition.sizes) == {17, 18}
    uses = np.bincount(partition.indices, minlength=len(DIGITS))
    drawn, held = np.bincount(DIGITS[partition.indices], minlength=10), np.bincount(DIGITS)
    assert (drawn != held).any(), "class totals are not conserved"
    assert uses.max() > 1
    assert uses.min() == 0
    for c in range(10):
        full, rest = divmod(drawn[c], held[c])                # every pool is emptied before it is refilled
        assert np.sort(uses[c == DIGITS]).tolist() == [full] * (held[c] - rest) + [full + 1] * rest


def test_client_wise_follows_priors_that_no_division_could() -> None:
    labels = np.repeat([0, 1], [5, 995])
    partition = ClientDirichletPartitioner(50, 1e-3).partition(labels, None, 0)
    dominated = [labels[partition.shard(i)].mean() for i in range(50)]
    assert set(dominated) == {0.0, 1.0}
    assert 15 < sum(share == 0.0 for share in dominated) < 35   # half of the clients want the class with 5 samples


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DirichletPartitioner(10, 0.0), "alpha must be positive and finite, got 0.0"),
        (lambda: ClientDirichletPartitioner(10, -1.0), "alpha must be positive and finite"),
        (lambda: InnerDirichletPartitioner([5], float("inf")), "alpha must be positive and finite"),
        (lambda: InnerDirichletPartitioner([5], []), "alpha must be positive and finite"),
        (lambda: DirichletPartitioner(2, [0.5, float("nan")]), "alpha must be positive and finite"),
        (lambda: DirichletPartitioner(3, [0.5, 0.5]), "alpha has 2 values for 3 partitions: give one number or 3"),
        (lambda: DirichletPartitioner(3, 0.5, -1), "min_partition_size must be an integer of 0 or more"),
        (lambda: DirichletPartitioner(200, 0.5).partition(DIGITS, None, 0), "size may be 8, or num_partitions 179"),
        (lambda: DirichletPartitioner(2000, 0.5, 1).partition(DIGITS, None, 0), "may be 0, or num_partitions 1797"),
        (lambda: ClientDirichletPartitioner(1798, 0.5).partition(DIGITS, None, 0), "num_partitions may be 1797"),
        (lambda: ClientDirichletPartitioner(9, [1.0] * 9).partition(DIGITS, None, 0), "9 values for 10 classes"),
        (lambda: InnerDirichletPartitioner([1798], 0.5).partition(DIGITS, None, 0), "may sum to 1797 at most"),
        (lambda: InnerDirichletPartitioner([2], 0.5).partition(DIGITS[:0], None, 0), "no samples"),
    ],
)
def test_infeasible_requests_say_what_is_feasible(make: Any, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        make()
