"""Cohorts: how many take part, and on what they depend."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim import Bernoulli, FixedSize


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_expected_size_is_the_mean_size(p: float) -> None:
    """Rounds in which nobody came are drawn again, so with few clients it is not p n."""
    sizes = [len(Bernoulli(p).cohort(0, round, 5)) for round in range(4000)]
    assert min(sizes) >= 1
    assert abs(np.mean(sizes) - Bernoulli(p).expected(5)) < 4 * np.std(sizes) / 4000**0.5 + 1e-12


def test_cohorts_are_a_function_of_seed_and_round() -> None:
    for sampling in (Bernoulli(0.3), FixedSize(0.3)):
        first = [sampling.cohort(1, round, 50).tolist() for round in range(5)]
        assert first == [sampling.cohort(1, round, 50).tolist() for round in range(5)]
        assert len(set(map(tuple, first))) == 5 and first[0] != sampling.cohort(2, 0, 50).tolist()
