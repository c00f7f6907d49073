"""Distinct and shared numbers of arrays are those of NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.arrays import distinct, shared

GIVEN = [[], [3], [5, 5, 5], [2, -1, 7, 2, 0, 7], [*range(50), *range(20, 70)]]


@pytest.mark.parametrize("values", GIVEN)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64, np.str_])
def test_distinct_numbers_are_those_of_numpy(values: list[int], kind: type) -> None:
    given = np.array(values, kind)
    found = distinct(given)
    assert found.dtype == given.dtype
    assert np.array_equal(found, np.unique(given))
    assert np.array_equal(given, np.array(values, kind))   # left as it was


@pytest.mark.parametrize("a", GIVEN)
@pytest.mark.parametrize("b", GIVEN)
def test_shared_numbers_are_those_of_numpy(a: list[int], b: list[int]) -> None:
    one, other = (np.array(values, np.int64) for values in (a, b))
    assert np.array_equal(shared(one, other), np.intersect1d(one, other))
