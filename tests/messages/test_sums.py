"""Sums whose bits do not depend on how the rows are divided among those who add them up."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.messages import sums
from fedsim.messages.sums import combine, partial_sums, tree_sum, weighted_sum


def rows(c: int, *shape: int) -> torch.Tensor:
    return torch.randn(c, *shape, generator=torch.Generator().manual_seed(c)) * 10 ** torch.arange(c).remainder(5).view(
        -1, *[1] * len(shape)
    )


@given(st.integers(1, 70), st.lists(st.integers(0, 70), max_size=5))
def test_any_division_gives_the_same_bits(c: int, cuts: list[int]) -> None:
    x = rows(c, 3)
    edges = sorted({0, c, *(cut for cut in cuts if cut < c)})
    sums = {}
    for start, stop in itertools.pairwise(edges):
        part = partial_sums(x[start:stop].clone(), start)
        assert len(part) <= 2 * (stop - start).bit_length(), "a worker hands over few vectors"
        sums |= part
    assert torch.equal(combine(sums, c), tree_sum(x))


def test_the_tree_is_the_documented_one() -> None:
    x = torch.tensor([1.0, 2**-24, 2**-24, 2**-24, 2**-24])
    assert tree_sum(x.clone()) == ((x[0] + x[1]) + (x[2] + x[3])) + x[4]
    assert tree_sum(x.clone()) != (((x[0] + x[1]) + x[2]) + x[3]) + x[4], "rounding shows the order"


@pytest.mark.parametrize("order", [None, torch.tensor([3, 0, 4, 1, 2])])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_weights_belong_to_rows(order: torch.Tensor | None, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "CHUNK_BYTES", chunk)
    x, w = rows(5, 9, 7), torch.rand(5, dtype=torch.float64)
    place = torch.arange(5) if order is None else order
    expected = tree_sum((x * w.float().view(5, 1, 1))[place])
    assert torch.equal(weighted_sum(x, w, order), expected)


def test_whole_numbers_are_averaged_as_fractions() -> None:
    half = torch.full((2,), 0.5, dtype=torch.float64)
    assert weighted_sum(torch.tensor([[1], [2]]), half).tolist() == [1.5]
