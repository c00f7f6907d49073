"""Weightings: stochastic as promised, equal to their formulas, and the fastest is not beaten."""

from __future__ import annotations

import math
from typing import get_args

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies import (
    WEIGHTINGS,
    Complete,
    Exponential,
    Hypercube,
    Path,
    RandomRegular,
    Ring,
    Star,
    TopologyError,
    check,
    column_stochastic,
    fastest,
    lazy,
    max_degree,
    metropolis,
    spectral,
    uniform,
    uniform_directed,
)
from topologies.graphs import GraphBuilder
from topologies.mixing import WeightingName


@st.composite
def graphs(draw: st.DrawFn, largest: int = 12) -> nx.Graph:
    """A connected graph: a random tree and some more links."""
    n = draw(st.integers(1, largest))
    graph = nx.empty_graph(n)
    graph.add_edges_from((i, draw(st.integers(0, i - 1))) for i in range(1, n))
    nodes = st.integers(0, n - 1)
    graph.add_edges_from((i, j) for i, j in draw(st.lists(st.tuples(nodes, nodes), max_size=3 * n)) if i != j)
    return graph


def test_the_names_for_the_command_line_are_those_of_the_functions() -> None:
    assert get_args(WeightingName) == tuple(WEIGHTINGS)


def strong(graph: nx.Graph, keep: list[bool]) -> nx.DiGraph:
    """Directed, still strongly connected: one direction of some links is taken away."""
    made = graph.to_directed()
    for (i, j), kept in zip(list(graph.edges()), keep, strict=False):
        made.remove_edge(i, j)
        if kept or not nx.is_strongly_connected(made):
            made.add_edge(i, j)
    return made


@given(graphs(), st.sampled_from(["metropolis", "max_degree"]))
@settings(max_examples=80)
def test_symmetric_weights_are_doubly_stochastic_on_any_graph(graph: nx.Graph, name: str) -> None:
    W = WEIGHTINGS[name](graph)
    check(W)
    check(lazy(W))
    assert W.dtype == np.float64
    assert W.diagonal().min() > 0
    links = W.toarray() - np.diag(W.diagonal())
    assert np.array_equal(links > 0, nx.to_numpy_array(graph, range(len(graph))) > 0)


@given(graphs())
@settings(max_examples=30)
def test_metropolis_and_max_degree_by_their_formulas(graph: nx.Graph) -> None:
    W, M = metropolis(graph).toarray(), max_degree(graph).toarray()
    most = max(d for _, d in graph.degree())
    for i, j in graph.edges():
        assert W[i, j] == W[j, i] == pytest.approx(1 / (1 + max(graph.degree(i), graph.degree(j))), rel=1e-14)
        assert M[i, j] == M[j, i] == pytest.approx(1 / (1 + most), rel=1e-14)


@given(graphs(), st.lists(st.booleans(), max_size=50))
@settings(max_examples=50)
def test_push_sum_finds_the_mean_on_any_directed_graph(graph: nx.Graph, keep: list[bool]) -> None:
    arrows = strong(graph, keep)
    P = column_stochastic(arrows)
    check(P, symmetric=False, sums="columns")
    n = len(arrows)
    z = np.arange(n) ** 2.0
    for i, j in arrows.edges():
        assert P[j, i] == 1 / (1 + arrows.out_degree(i))
    far = np.linalg.matrix_power(P.toarray(), 2**20)
    assert np.allclose((far @ z) / (far @ np.ones(n)), z.mean(), atol=1e-6)


def test_uniform_needs_a_regular_graph() -> None:
    for builder in (Ring(), Complete(), RandomRegular(4), Hypercube()):
        graph = builder.build(16, 0)
        W = uniform(graph)
        check(W)
        assert abs(W - metropolis(graph)).max() < 1e-15
    with pytest.raises(TopologyError, match="node 0 hears 1 nodes and node 1 hears 2: take metropolis"):
        uniform(Path().build(4, 0))
    with pytest.raises(TopologyError, match="needs links in both directions"):
        uniform(Exponential(directed=True).build(8, 0))


def test_uniform_directed_hears_against_the_arrows() -> None:
    W = uniform_directed(Exponential(directed=True).build(10, 0))
    check(W, symmetric=False)
    assert W[3, 2] == W[3, 1] == W[3, 9] == W[3, 5] == W[3, 3] == 0.2
    assert W[2, 3] == 0
    with pytest.raises(TopologyError, match=r"node 0 hears 2 nodes and node 0 speaks to 3: take .* column_stoch"):
        uniform_directed(nx.DiGraph([(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 3), (3, 1), (3, 2)]))


def test_metropolis_on_the_complete_graph_is_the_mean() -> None:
    assert np.allclose(metropolis(Complete().build(7, 0)).toarray(), 1 / 7, atol=1e-15)


def edge_transitive(low: float, high: float) -> float:
    """Smallest lam of a graph whose links are all alike, from the extreme nonzero Laplacian eigenvalues."""
    return (high - low) / (high + low)


@pytest.mark.parametrize(
    ("builder", "n", "best"),
    [
        (Path(), 2, 0.0),
        (Path(), 16, math.cos(math.pi / 16)),  # Boyd, Diaconis, Sun and Xiao (2006)
        (Ring(), 10, edge_transitive(2 - 2 * math.cos(math.pi / 5), 4)),
        (Star(), 20, 1 - 1 / 19),
        (Hypercube(), 16, 3 / 5),
        (Complete(), 12, 0.0),
    ],
)
def test_fastest_reaches_known_optima(builder: GraphBuilder, n: int, best: float) -> None:
    W = fastest(builder.build(n, 0))
    check(W)
    assert spectral(W).lam == pytest.approx(best, abs=1e-6)


@given(graphs(largest=9), st.integers(0, 2**32))
@settings(max_examples=25)
@pytest.mark.slow
def test_fastest_is_not_beaten_nearby_so_nowhere(graph: nx.Graph, seed: int) -> None:
    W = fastest(graph)
    check(W)
    best = spectral(W).lam
    assert best <= min(spectral(metropolis(graph)).lam, spectral(max_degree(graph)).lam) + 1e-5
    rng = np.random.default_rng(seed)
    for _ in range(20):  # lam is convex in W
        links = np.triu(nx.to_numpy_array(graph, range(len(graph))), 1) * rng.exponential(size=[len(graph)] * 2)
        links += links.T
        links /= max(1e-9, links.sum(axis=1).max()) * rng.uniform(1, 2)
        other = links + np.diag(1 - links.sum(axis=1))
        for share in (1.0, 0.1, 0.01):
            assert spectral((1 - share) * W.toarray() + share * other).lam >= best - 1e-5 * share - 1e-7


def test_fastest_leaves_useless_links_out_and_has_a_limit() -> None:
    barbell = nx.barbell_graph(5, 0)
    assert spectral(fastest(barbell)).lam < spectral(metropolis(barbell)).lam - 0.01
    diamond = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])
    W = fastest(diamond)
    assert 0 < np.count_nonzero(W.toarray()) <= 4 + 2 * 5
    with pytest.raises(TopologyError, match="up to 64 nodes, not n=65: take metropolis"):
        fastest(Ring().build(65, 0))


def test_any_networkx_graph_is_accepted() -> None:
    grid = nx.grid_2d_graph(3, 4)
    assert abs(metropolis(grid) - metropolis(nx.convert_node_labels_to_integers(grid))).max() == 0
    parallel = nx.MultiGraph([("a", "b"), ("a", "b"), ("b", "c")])
    for weighting in (metropolis, max_degree):
        check(weighting(parallel))
        assert weighting(parallel)[0, 1] == weighting(parallel)[2, 1] == pytest.approx(1 / 3)
