"""Faults of mixing matrices and graphs, and the repair that each error names."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fedsim.gossip import weigh
from topologies import Ring, TopologyError, check, column_stochastic, lazy, metropolis, uniform_directed

RING = metropolis(Ring().build(6, 0)).toarray()


def changed(i: int, j: int, value: float) -> np.ndarray:
    W = RING.copy()
    W[i, j] = value
    return W


@given(st.integers(2, 9), st.lists(st.randoms(), min_size=1, max_size=4))
@settings(max_examples=40)
def test_averages_of_permutations_pass_and_a_changed_entry_does_not(n: int, randoms: list[object]) -> None:
    orders = [list(range(n))] + [random.sample(range(n), n) for random in randoms]  # type: ignore[attr-defined]
    W = np.mean([np.eye(n)[order] for order in orders], axis=0)  # Birkhoff: doubly stochastic
    check(W, symmetric=False, connected=False)
    check(csr_array((W + W.T) / 2), connected=False)
    W[n - 1, 0] += 0.25
    with pytest.raises(TopologyError, match=rf"row {n - 1} of W sums to 1.25, 0.25 above 1; .*"):
        check(W, symmetric=False, connected=False)


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (changed(2, 2, 0.2), r"row 2 of W sums to 0.8666\d*, 0.133 below 1; .* metropolis gives"),
        (changed(4, 3, -1 / 3), r"entry \[4, 3\] of W is -0.333333; expected finite weights, 0 or more"),
        (changed(1, 0, np.nan), r"entry \[1, 0\] of W is nan"),
        (np.ones((2, 3)) / 3, r"shape \[2, 3\]; expected \[n, n\]"),
        (np.zeros((0, 0)), r"shape \[0, 0\]"),
        (np.array([[0.5, 0.5], [0.0, 1.0]]), r"column 0 of W sums to 0.5, 0.5 below 1; .* push-sum"),
        (
            np.array([[0.9, 0.1, 0], [0, 0.9, 0.1], [0.1, 0, 0.9]]),
            r"W is not symmetric: entry \[0, 1\] is 0.1, \[1, 0\] is 0; .* metropolis gives symmetric",
        ),
        (np.kron(np.eye(2), np.full((2, 2), 0.5)), r"W is disconnected: 2 components, among them one of 2 nodes"),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), r"W is periodic: .* lazy\(W\)"),
    ],
)
def test_the_error_names_the_place_the_amount_and_the_repair(W: np.ndarray, message: str) -> None:
    for given_as in (W, csr_array(W)):
        with pytest.raises(TopologyError, match=message):
            check(given_as)


def test_the_repairs_repair() -> None:
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    check(lazy(csr_array(swap)))
    check(swap, connected=False)
    arrows = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    check(uniform_directed(arrows), symmetric=False)
    arrows.add_edge(0, 2)
    check(column_stochastic(arrows), symmetric=False, sums="columns")
    check(weigh(metropolis(nx.path_graph(3)), np.array([1, 2, 3]), 1), symmetric=False, sums="rows")


def test_float32_is_precise_enough_only_if_told() -> None:
    W = RING.astype(np.float32)
    with pytest.raises(TopologyError, match="above 1"):
        check(W)
    check(W, tolerance=1e-6)


def test_graphs_that_cannot_gossip() -> None:
    with pytest.raises(TopologyError, match=r"2 components, .* 4 nodes \(with node 3\) and one of 3 \(with node 0\)"):
        metropolis(nx.disjoint_union(nx.path_graph(3), nx.complete_graph(4)))
    loop = nx.path_graph(3)
    loop.add_edge(1, 1)
    with pytest.raises(TopologyError, match=r"node 1 is linked to itself; .*selfloop_edges"):
        metropolis(loop)
    loop.remove_edges_from(list(nx.selfloop_edges(loop)))
    check(metropolis(loop))
    with pytest.raises(TopologyError, match=r"the edge 1 -> 2 but not 2 -> 1; .* column_stochastic"):
        metropolis(nx.DiGraph([(0, 1), (1, 0), (1, 2), (2, 3), (3, 2)]))
    with pytest.raises(TopologyError, match="disconnected"):
        column_stochastic(nx.DiGraph([(0, 1), (0, 2)]))
    for empty in (nx.Graph(), np.eye(3)):
        with pytest.raises(TopologyError, match="expected a networkx graph with 1 node or more"):
            metropolis(empty)  # type: ignore[arg-type]
