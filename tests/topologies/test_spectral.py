"""Spectral gaps: the published-style table, closed forms, and the sparse solver against the dense one."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fedsim.gossip import weigh
from topologies import (
    BarabasiAlbert,
    Complete,
    ErdosRenyi,
    Exponential,
    Grid,
    Hypercube,
    OnePeerExponential,
    Path,
    RandomMatching,
    RandomRegular,
    Ring,
    Spectral,
    Star,
    Static,
    TopologyError,
    Torus,
    TwoCliques,
    WattsStrogatz,
    Weighting,
    column_stochastic,
    lazy,
    max_degree,
    metropolis,
    spectral,
    uniform_directed,
)
from topologies.graphs import GraphBuilder
from topologies.spectrum import DENSE_SINGULAR_NODES, MANY_NODES, closed_form, contraction_bound, translated

COLUMNS: list[tuple[GraphBuilder, Weighting]] = [
    (Ring(), metropolis),
    (Grid(), metropolis),
    (Torus(), metropolis),
    (Exponential(), metropolis),
    (Exponential(directed=True), uniform_directed),
    (Complete(), metropolis),
]
TABLE = {
    10: [0.8727, 0.9045, 0.6545, 0.4286, 0.6000, 0.0],
    16: [0.9493, 0.8686, 0.6000, 0.5000, 0.6000, 0.0],
    20: [0.9674, 0.9143, 0.7236, 0.5556, 0.6667, 0.0],
    64: [0.9968, 0.9677, 0.8828, 0.6667, 0.7143, 0.0],
    100: [0.9987, 0.9795, 0.9236, 0.7333, 0.7500, 0.0],
}
GAPS = {
    10: [0.1273, 0.0955, 0.3455, 0.5714, 0.4000, 1.0],
    16: [0.0507, 0.1314, 0.4000, 0.5000, 0.4000, 1.0],
    20: [0.0326, 0.0857, 0.2764, 0.4444, 0.3333, 1.0],
    64: [0.0032, 0.0323, 0.1172, 0.3333, 0.2857, 1.0],
    100: [0.0013, 0.0205, 0.0764, 0.2667, 0.2500, 1.0],
}


@pytest.mark.parametrize("n", TABLE)
def test_the_table_of_topologies(n: int) -> None:
    found = [spectral(weighting(builder.build(n, 0))) for builder, weighting in COLUMNS]
    assert [round(abs(s.lam), 4) for s in found] == TABLE[n]
    assert [round(s.gap, 4) for s in found] == GAPS[n]


@pytest.mark.parametrize("n", [3, 10, 101, 512, 513, 10_000])
def test_ring_and_path_by_closed_form_at_every_size(n: int) -> None:
    ring = spectral(metropolis(Ring().build(n, 0)))
    gap = 4 / 3 * math.sin(math.pi / n) ** 2  # 1.3e-7 for 10,000 nodes
    if n > 3:
        assert ring.gap == pytest.approx(gap, rel=1e-7, abs=1e-15)
    assert ring.lambda2 == pytest.approx(1 - gap, abs=1e-14)
    assert ring.lambda_n == pytest.approx(1 / 3 + 2 / 3 * math.cos(2 * math.pi * (n // 2) / n), abs=1e-9)
    path = spectral(metropolis(Path().build(n, 0)))
    assert path.gap == pytest.approx(4 / 3 * math.sin(math.pi / n / 2) ** 2, rel=1e-6)


SPARSE: list[tuple[GraphBuilder, Weighting]] = [
    (Complete(), metropolis),
    (Star(), max_degree),
    (TwoCliques(), metropolis),
    (Exponential(), metropolis),
    (Grid(), lambda graph: lazy(metropolis(graph))),
    (ErdosRenyi(0.02), metropolis),
    (RandomRegular(3), metropolis),
    (BarabasiAlbert(1), metropolis),
    (BarabasiAlbert(6), max_degree),
    (WattsStrogatz(4, 0.02), metropolis),
]


@pytest.mark.parametrize(("builder", "weighting"), SPARSE)
def test_sparse_and_dense_agree(builder: GraphBuilder, weighting: Weighting) -> None:
    W = weighting(builder.build(600, 1))
    values = np.linalg.eigvalsh(W.toarray())
    exact = (max(abs(values[0]), abs(values[-2])), values[-2], values[0])
    assert spectral(W)[1:] == pytest.approx(exact, abs=1e-10)


def test_disconnected_large_matrices_have_no_gap() -> None:
    assert spectral(RandomMatching().matrix(0, 0, 1000)).gap == pytest.approx(0, abs=1e-10)
    assert spectral(csr_array(np.eye(3))) == (0, 1, 1, 1)


@pytest.mark.parametrize("n", [300, 1000])
def test_directed_circulant_by_fourier(n: int) -> None:
    W = uniform_directed(Exponential(directed=True).build(n, 0))
    values = np.fft.fft(W[:, [0]].toarray().ravel())[1:]
    exact = (abs(values).max(), values.real.max(), values.real.min())
    assert spectral(W)[1:] == pytest.approx(exact, abs=1e-9)
    assert spectral(column_stochastic(Exponential(directed=True).build(n, 0))).lam == pytest.approx(exact[0], abs=1e-9)


def test_reversible_weights_have_the_spectrum_of_their_symmetric_form() -> None:
    graph = nx.karate_club_graph()
    root = np.sqrt(np.arange(1, 35))
    W = weigh(metropolis(graph), root**2, 1)
    values = np.linalg.eigvalsh(root[:, None] * W.toarray() / root)
    assert spectral(W)[2:] == pytest.approx((values[-2], values[0]), abs=1e-10)


def test_one_and_two_nodes() -> None:
    assert spectral(metropolis(Ring().build(1, 0))) == Spectral(1, 0, 0, 0)
    assert spectral(metropolis(Ring().build(2, 0))) == pytest.approx((1, 0, 0, 0), abs=1e-15)
    assert spectral(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx((0, 1, -1, -1))


@pytest.mark.slow
def test_what_cannot_be_analysed_is_said() -> None:
    with pytest.raises(TopologyError, match="neither the rows nor the columns of W sum to 1"):
        spectral(np.array([[0.5, 0.1], [0.2, 0.5]]))
    with pytest.raises(TopologyError, match="non-symmetric W of 2000 nodes crowd too much"):
        mixed = np.random.default_rng(0).permutation(2000)     # has no closed form, as nodes are in no order
        spectral(csr_array(OnePeerExponential().matrix(0, 0, 2000)[mixed][:, mixed]))
    assert spectral(OnePeerExponential().matrix(0, 0, 2000)).lam == pytest.approx(math.cos(math.pi / 2000), abs=1e-12)


@given(
    st.sampled_from([(b, w) for b, w in COLUMNS] + [(Star(), max_degree), (TwoCliques(), metropolis)]),
    st.sampled_from([1, 2, 4, 6, 9, 16, 30]),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_mixing_keeps_the_mean_and_contracts_by_lam(case: tuple[GraphBuilder, Weighting], n: int, seed: int) -> None:
    builder, weighting = case
    W = weighting(builder.build(n, 0))
    z = np.random.default_rng(seed).standard_normal((n, 3))
    mean = z.mean(axis=0)
    assert np.allclose((W @ z).mean(axis=0), mean, atol=1e-14)
    lam = spectral(W).lam
    assert np.linalg.norm(W @ z - mean) <= lam * np.linalg.norm(z - mean) + 1e-12
    power = np.linalg.norm(W @ (W @ (W @ z)) - mean)
    assert power <= lam**3 * np.linalg.norm(z - mean) + 1e-12


BOUNDED: dict[str, Any] = {
    "ring": lambda n: metropolis(Ring().build(n, 0)),
    "hubs": lambda n: metropolis(BarabasiAlbert(2).build(n, 3)),
    "complete": lambda n: metropolis(Complete().build(n, 0)),
    "directed": lambda n: Static(Exponential(directed=True), "uniform_directed").matrix(1, 0, n),
    "one peer": lambda n: OnePeerExponential().matrix(2, 0, n),
}


@pytest.mark.parametrize("n", [5, DENSE_SINGULAR_NODES, DENSE_SINGULAR_NODES + 1, 300])
@pytest.mark.parametrize("kind", BOUNDED)
def test_the_bound_is_the_second_singular_value(kind: str, n: int) -> None:
    w = BOUNDED[kind](n)
    bound = contraction_bound(w)
    assert bound == pytest.approx(np.linalg.svd(w.toarray() - 1 / n, compute_uv=False)[0], abs=1e-8)
    if kind in ("ring", "hubs"):
        assert bound == pytest.approx(spectral(w).lam, abs=1e-8)


def test_the_bound_of_many_nodes() -> None:
    """In closed form on the torus; None rather than a wrong one where eigenvalues crowd."""
    torus = contraction_bound(metropolis(Torus().links(2500)))
    assert torus == pytest.approx(1 - 0.4 * (1 - np.cos(2 * np.pi / 50)), abs=1e-12)
    assert contraction_bound(metropolis(Grid().links(150 * 150))) is None


@pytest.mark.parametrize("n", [400, MANY_NODES + 2])
def test_a_bound_without_a_closed_form_is_never_below_and_hardly_above(n: int) -> None:
    w = metropolis(RandomRegular(4).build(n, 1))
    known = spectral(w).lam                                # symmetric
    bound = contraction_bound(w)
    assert bound is not None and known - 1e-9 <= bound <= known * 1.01


@pytest.mark.parametrize("graph", [Ring(), Torus(), Exponential(), Complete(), Hypercube()])
@pytest.mark.parametrize("n", [12, 16, 25])
def test_the_closed_form_of_graphs_that_look_the_same_from_every_node(graph: Any, n: int) -> None:
    """All eigenvalues of the dense W, and so the bound that beyond 10,000 nodes is found in no other way."""
    n = 16 if isinstance(graph, Hypercube) else n
    w = metropolis(graph.build(n, 0)) if not isinstance(graph, Exponential) else Static(graph).matrix(1, 0, n)
    found = translated(w)
    assert found is not None
    np.testing.assert_allclose(np.sort(abs(found), axis=None), np.sort(abs(np.linalg.eigvals(w.toarray()))), atol=1e-12)


REFLECTED = [metropolis(Path().links(30)), max_degree(Grid().links(42)), lazy(max_degree(Grid().links(49)))]


@pytest.mark.parametrize("w", REFLECTED, ids=["path", "grid", "lazy"])
def test_the_closed_form_of_paths_and_grids(w: csr_array) -> None:
    found = closed_form(w)
    assert found is not None and translated(w) is None
    np.testing.assert_allclose(np.sort(found, axis=None), np.linalg.eigvalsh(w.toarray()), atol=1e-12)


def test_other_graphs_have_no_closed_form() -> None:
    assert closed_form(metropolis(Grid().links(12))) is None
    assert closed_form(metropolis(ErdosRenyi(0.5).build(12, 0))) is None


def test_the_bound_of_more_nodes_in_closed_form() -> None:
    bound = contraction_bound(metropolis(Ring().build(10_001, 0)))
    assert bound == pytest.approx(1 / 3 + 2 / 3 * np.cos(2 * np.pi / 10_001), abs=1e-14)
    side = contraction_bound(metropolis(Torus().build(101 * 101, 0)))
    assert side == pytest.approx(1 - 2 / 5 * (1 - np.cos(2 * np.pi / 101)), abs=1e-12)
