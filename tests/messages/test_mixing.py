"""Rows mixed by a sparse matrix, and matrices among those who are present."""

from __future__ import annotations

import tracemalloc
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from fedsim.gossip import check, restrict
from fedsim.messages import mixing
from fedsim.messages.mixing import mix_rows
from topologies import (
    BarabasiAlbert,
    Exponential,
    OnePeerExponential,
    Ring,
    Star,
    column_stochastic,
    metropolis,
)

SIZES = (1, 2, 100, 300, 1000)
TOLERANCES = {torch.float64: 1e-14, torch.float32: 2e-6}
DOUBLE = torch.float64


def ragged(n: int) -> csr_array:
    """Random rows of very different lengths, 0 among them; no sums that anyone would expect."""
    rng = np.random.default_rng(n)
    return csr_array(random_array((n, n), density=min(1, 6 / n), rng=rng)) + csr_array(
        ([0.5] * (n // 2), ([0] * (n // 2), range(n // 2))), (n, n)
    )


MATRICES: dict[str, Any] = {
    "ring": lambda n: metropolis(Ring().build(n, 0)),
    "exponential": lambda n: metropolis(Exponential().build(n, 0)),       # more neighbours than fit in few
    "star": lambda n: metropolis(Star().build(n, 0)),
    "hubs": lambda n: metropolis((BarabasiAlbert(2) if n > 2 else Star()).build(n, 3)),
    "one peer": lambda n: OnePeerExponential().matrix(2, 0, n),
    "ragged": ragged,
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", MATRICES)
def test_rows_are_mixed_as_by_a_dense_product(kind: str, n: int, dtype: torch.dtype) -> None:
    w = MATRICES[kind](n)
    x = torch.randn(n, 37, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    expected = w.toarray() @ x.numpy()
    given = x.to(dtype)
    before = given.clone()
    mixed = mix_rows(w, given)
    assert mixed.dtype == dtype and mixed.shape == x.shape and torch.equal(given, before)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=TOLERANCES[dtype] * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 10**9])
@pytest.mark.parametrize("shape", [(), (1,), (33,), (3, 4), (2, 1, 5)])
@pytest.mark.parametrize("kind", ["ring", "exponential"])
def test_any_shape_in_chunks_of_any_size(
    kind: str, shape: tuple[int, ...], chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "CHUNK_BYTES", chunk_bytes)
    for n in (5, 200):
        w = MATRICES[kind](n)
        x = torch.randn(n, *shape, dtype=DOUBLE)
        expected = np.tensordot(w.toarray(), x.numpy(), 1)
        np.testing.assert_allclose(mix_rows(w, x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [6, 300])
def test_a_stack_that_is_not_contiguous(n: int) -> None:
    w, x = MATRICES["hubs"](n), torch.randn(7, n, 2, dtype=DOUBLE)
    views = x.transpose(0, 1), x[0], x[::2].permute(1, 2, 0)
    for view in views:
        np.testing.assert_allclose(mix_rows(w, view), np.tensordot(w.toarray(), view.numpy(), 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["ring", "exponential"])
@pytest.mark.parametrize("n", [6, 300])
def test_into_memory_that_is_there(n: int, kind: str) -> None:
    w, x, out = MATRICES[kind](n), torch.randn(n, 3, 2, dtype=DOUBLE), torch.full((n, 3, 2), float("nan"), dtype=DOUBLE)
    assert mix_rows(w, x, out) is out and torch.equal(out, mix_rows(w, x))


def test_mixing_again_is_mixing_by_the_power() -> None:
    w, x = MATRICES["hubs"](300), torch.randn(300, 4, dtype=DOUBLE)
    np.testing.assert_allclose(mix_rows(w, mix_rows(w, x)), (w @ w).toarray() @ x.numpy(), rtol=0, atol=1e-14)


subsets = st.sets(st.integers(0, 11), min_size=1).map(lambda s: np.array(sorted(s)))


@settings(max_examples=40)
@given(subsets, st.integers(0, 5))
def test_among_those_present_symmetric_doubly_stochastic_stays_so(active: np.ndarray, seed: int) -> None:
    w = metropolis(BarabasiAlbert(2).build(12, seed))
    among = restrict(w, active, 1)
    check(among, 1, symmetric=True)
    off = ~np.eye(len(active), dtype=bool)
    np.testing.assert_array_equal(among.toarray()[off], w.toarray()[np.ix_(active, active)][off])
    alone = (among.toarray() * off).sum(0) == 0
    np.testing.assert_array_equal(among.toarray()[alone], np.eye(len(active))[alone], "who is alone keeps every bit")


@settings(max_examples=40)
@given(subsets)
def test_among_those_present_columns_keep_their_sums(active: np.ndarray) -> None:
    """Push-sum: a node keeps what it would have sent to those who are away."""
    graph = nx.DiGraph([(i, (i + 1) % 12) for i in range(12)] + [(0, 5), (0, 7), (3, 0), (8, 2)])
    w = column_stochastic(graph)
    among = restrict(w, active, 1, rows=False).toarray()
    np.testing.assert_allclose(among.sum(0), 1, rtol=0, atol=1e-15)
    away = np.setdiff1d(np.arange(12), active)
    expected = np.diag(w.toarray()[np.ix_(active, active)]) + w.toarray()[np.ix_(away, active)].sum(0)
    np.testing.assert_allclose(np.diag(among), expected, rtol=0, atol=1e-15)


def test_a_column_that_is_wrong_stays_so() -> None:
    assert restrict(csr_array(np.diag([0.7, 1.0, 1.0])), np.array([0, 2]), 1).diagonal().tolist() == [0.7, 1.0]


def test_among_most_of_ten_thousand_without_a_dense_matrix() -> None:
    n = 10_000
    w = metropolis(Ring().build(n, 0))
    tracemalloc.start()
    try:
        check(restrict(w, np.flatnonzero(np.arange(n) % 3 > 0), 1), 1, symmetric=True)
        assert tracemalloc.get_traced_memory()[1] < 20e6   # n x n float64 would be 800e6 bytes
    finally:
        tracemalloc.stop()


def test_everybody_present_is_w_itself() -> None:
    w = metropolis(Ring().build(6, 0))
    assert restrict(w, np.arange(6), 1) is w
