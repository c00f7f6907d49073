"""Cohorts: how many take part, and on what they depend."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsim import Bernoulli, FixedSize, seeds


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.slow
def test_expected_size_is_the_mean_size(p: float) -> None:
    """Rounds in which nobody came are drawn again, so with few clients it is not p n."""
    sizes = [len(Bernoulli(p).cohort(0, round, 5)) for round in range(4000)]
    assert min(sizes) >= 1
    assert abs(np.mean(sizes) - Bernoulli(p).expected(5)) < 4 * np.std(sizes) / 4000**0.5 + 1e-12


@pytest.mark.slow
def test_the_law_of_cohorts_that_are_not_empty() -> None:
    """P(cohort) = product of p or 1 - p over clients, divided by the probability that anybody comes."""
    n, p, draws = 3, 0.15, 8000
    found = Counter(tuple(Bernoulli(p).cohort(5, round, n).tolist()) for round in range(draws))
    cohorts = [c for size in (1, 2, 3) for c in combinations(range(n), size)]
    law = np.array([p ** len(c) * (1 - p) ** (n - len(c)) for c in cohorts]) / (1 - (1 - p) ** n)
    assert found.keys() <= set(cohorts)
    assert chisquare([found[c] for c in cohorts], law * draws).pvalue > 1e-3


@pytest.mark.parametrize("p", [1e-12, 1e-300])
def test_a_tiny_probability_draws_one_client_at_once(p: float) -> None:
    alone = [Bernoulli(p).cohort(0, round, 10).tolist() for round in range(400)]
    assert {len(cohort) for cohort in alone} == {1}
    assert chisquare(np.bincount([cohort[0] for cohort in alone], minlength=10)).pvalue > 1e-3


def test_cohorts_are_a_function_of_seed_and_round() -> None:
    for sampling in (Bernoulli(0.3), FixedSize(0.3)):
        first = [sampling.cohort(1, round, 50).tolist() for round in range(5)]
        assert first == [sampling.cohort(1, round, 50).tolist() for round in range(5)]
        assert len(set(map(tuple, first))) == 5 and first[0] != sampling.cohort(2, 0, 50).tolist()


@pytest.mark.parametrize(("n", "k"), [(9, 2), (10, 3), (4, 4)])
@pytest.mark.slow
def test_the_first_places_of_a_keyed_permutation_are_any_in_any_order(n: int, k: int) -> None:
    draws = 6000
    found = Counter(tuple(seeds.places(3, "cohort", round, n, k).tolist()) for round in range(draws))
    expected = list(permutations(range(n), k))
    assert found.keys() <= set(expected)
    assert chisquare([found[order] for order in expected]).pvalue > 1e-3


def test_all_places_are_a_permutation() -> None:
    for n in (1, 2, 10, 1000, 10_001):
        assert sorted(seeds.places(0, "cohort", 1, n, n).tolist()) == list(range(n))


@pytest.mark.parametrize("rule", [FixedSize(size=100), Bernoulli(1e-4), Bernoulli(0.3)])
def test_cohorts_of_a_large_population_are_spread_evenly(rule: FixedSize | Bernoulli) -> None:
    """By counts in a hundred ranges of ids and in 97 classes, and by the gaps between neighbours."""
    n, rounds = 1_000_000, 400 if rule.expected(1_000_000) < 1000 else 2
    cohorts = [rule.cohort(0, round, n) for round in range(rounds)]
    ids = np.concatenate(cohorts)
    assert all((np.diff(ids) > 0).all() and ids[0] >= 0 and ids[-1] < n for ids in cohorts)
    assert chisquare(np.bincount(ids // 10_000, minlength=100)).pvalue > 1e-3
    assert chisquare(np.bincount(ids % 97, minlength=97)).pvalue > 1e-3
    share = rule.expected(n) / n
    if isinstance(rule, Bernoulli):
        gaps = np.concatenate([np.diff(ids) for ids in cohorts])
        edges = np.unique(np.ceil(np.log(np.linspace(1, 0, 20)[:-1]) / np.log1p(-share)).astype(int)) + 1
        law = -np.diff((1 - share) ** (edges - 1), append=0)
        assert chisquare(np.histogram(gaps, [*edges, n + 1])[0], law * len(gaps), sum_check=False).pvalue > 1e-3
    sizes = np.array([len(ids) for ids in cohorts])
    spread = 0 if isinstance(rule, FixedSize) else (n * share * (1 - share) / rounds) ** 0.5
    assert abs(sizes.mean() - rule.expected(n)) <= 4 * spread


@pytest.mark.parametrize("p", [1e-12, 1e-300])
def test_a_tiny_probability_draws_one_of_a_million(p: float) -> None:
    alone = [Bernoulli(p).cohort(0, round, 1_000_000).tolist() for round in range(1000)]
    assert {len(cohort) for cohort in alone} == {1}
    assert chisquare(np.bincount([cohort[0] // 100_000 for cohort in alone], minlength=10)).pvalue > 1e-3
