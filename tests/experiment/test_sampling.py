"""Cohorts: how many take part, and on what they depend."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsim import Bernoulli, FixedSize


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
