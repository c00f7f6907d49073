"""Exact selection: against sorting, with ties, whatever the sample says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.compress import TopK, selection
from tests.compress.cases import SHAPES, At, vector


def by_definition(x: np.ndarray, k: int) -> list[int]:
    """Sorted by larger magnitude, then by lower index."""
    return sorted(np.lexsort((np.arange(len(x)), -np.abs(x)))[:k].tolist())


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
@settings(max_examples=80)
def test_short_vectors_with_ties(numbers: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(numbers)))
    x = torch.tensor(numbers, dtype=torch.float32)
    assert selection.largest(x, k).tolist() == by_definition(x.numpy(), k)


LONG = {
    "normal": lambda draw, d: draw.normal(size=d),
    "few values": lambda draw, d: draw.integers(-2, 3, d),
    "nearly all zero": lambda draw, d: draw.normal(size=d) * (draw.random(d) < 1e-4),
    "zero": lambda draw, d: np.zeros(d),
    "equal": lambda draw, d: np.full(d, -7.0),
    "large where the sample looks": lambda draw, d: np.where(np.arange(d) % (d // selection.SAMPLE or 1) == 1, 9, 1),
    "large at the end": lambda draw, d: np.arange(d),
    "heavy tails": lambda draw, d: draw.standard_cauchy(d),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 50, 3_000, 199_999])
def test_long_vectors(kind: str, dtype: type, k: int) -> None:
    x = LONG[kind](np.random.default_rng(k), 200_000).astype(dtype)
    assert selection.largest(torch.from_numpy(x), k).tolist() == by_definition(x, k)


def test_the_sample_decides_speed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    for threshold in (0.0, 0.5, 2.0, 100.0):
        monkeypatch.setattr(selection, "_threshold", lambda x, k, t=threshold: t)
        assert selection.largest(torch.from_numpy(x), 700).tolist() == by_definition(x, 700)


def test_all_ways_agree_and_stacks_of_stacks_work() -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(-50, 50, (2, 3, selection.LONG)).astype(np.float64))
    assert torch.equal(selection.largest(x, 300), selection._by_sorting(x, 300))
    assert torch.equal(selection.largest(x, 300), selection._by_threshold(x, 300)), "on other devices than the CPU"
    below = torch.vmap(torch.vmap(lambda x: selection.largest(x, 300)))(x)
    assert torch.equal(below, selection.largest(x, 300))


@pytest.mark.parametrize("d", [100, 3 * selection.LONG])
def test_nan_and_infinity_are_selected(d: int) -> None:
    """So that they are seen."""
    x = torch.arange(d, dtype=torch.float32)
    x[5], x[7], x[8] = -torch.inf, torch.nan, torch.inf
    for way in (selection.largest, selection._by_threshold):
        assert way(x, 2).tolist() in ([5, 7], [7, 8]) and way(x, 3).tolist() == [5, 7, 8]
        assert len(way(torch.full((d,), torch.nan), 4)) == 4


def test_scopes() -> None:
    x = vector(3)
    for scope, sizes in (("layer", [15, 4, 18, 1]), (5, [5] * 7 + [3]), (100, [38]), ("global", [38])):
        index, values = TopK(k=9, scope=scope).compress(x, At()).parts
        expected, start = [], 0
        for size in sizes:
            part = x.numpy()[start : start + size]
            expected += [start + i for i in by_definition(part, -(-9 * size // 38))]
            start += size
        assert index.tolist() == expected and torch.equal(values, x[index])
    assert sum(shape.numel() for shape in SHAPES) == 38
