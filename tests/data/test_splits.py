"""Held-out samples: deterministic, stratified, of the size asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.splits import encode_targets, holdout, number_clients
from fedsim.errors import ConfigError, DataError


@given(
    labels=st.lists(st.integers(0, 3), min_size=5, max_size=200),
    fraction=st.floats(0.15, 0.85),
    seed=st.integers(0, 2**32),
)
def test_every_stratum_gives_its_share(labels: list[int], fraction: float, seed: int) -> None:
    y = np.array(labels)
    test = holdout((y,), fraction, seed, "f")
    assert abs(test.sum() - fraction * len(y)) <= 0.5 + 1e-9
    for label in set(labels):
        assert abs(test[y == label].sum() - fraction * (y == label).sum()) < 1 + 1e-9
    np.testing.assert_array_equal(test, holdout((y,), fraction, seed, "f"))


def test_seed_decides_the_split() -> None:
    y = np.arange(1000) % 7
    assert (holdout((y,), 0.2, 0, "f") != holdout((y,), 0.2, 1, "f")).any()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_impossible_fraction(fraction: float) -> None:
    with pytest.raises(ConfigError, match="test_fraction"):
        holdout((np.zeros(10),), fraction, 0, "f")


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match="f: 2 samples; expected enough"):
        holdout((np.zeros(2),), 0.1, 0, "f")


def test_labels_are_numbered_in_sorted_order() -> None:
    y, classes, names = encode_targets(np.array([10.0, -1.0, 2.0, 10.0]), "f")
    assert y.tolist() == [2, 0, 1, 2] and classes == 3 and names == ("-1", "2", "10")
    with pytest.raises(DataError, match=r"f: label 0.5 .*regression"):
        encode_targets(np.array([0.5, 1.0]), "f")
    with pytest.raises(DataError, match="not a finite number"):
        encode_targets(np.array([np.nan, 1.0]), "f")


def test_owners_with_training_samples_come_first() -> None:
    client, names = number_clients(np.array([30, 10, 20, 10]), np.array([False, True, False, False]))
    assert names == ("10", "20", "30") and client.tolist() == [2, 0, 1, 0]
    client, names = number_clients(np.array([30, 10, 20, 10]), np.array([False, True, False, True]))
    assert names == ("20", "30", "10") and client.tolist() == [1, 2, 0, 2]
