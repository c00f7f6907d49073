"""Is this graph fit for gossip, and is this W a mixing matrix? Errors name the node, the amount, and the repair."""

from __future__ import annotations

from typing import Literal

import networkx as nx
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from topologies.errors import TopologyError
from topologies.given import Graph, in_order


def adjacency(graph: Graph, directed: bool = False) -> csr_array:
    """The checked adjacency matrix ``[n, n]`` of a graph, float64 ones where i -> j, nodes as in `in_order`.

    Args:
        graph: any networkx graph; parallel edges count once.
        directed: whether edges may have a direction.

    Raises:
        TopologyError: it is empty, disconnected, has a self-loop, or has directions where it must not.
    """
    if not isinstance(graph, nx.Graph) or len(graph) == 0:
        raise TopologyError(f"expected a networkx graph with 1 node or more, got {graph!r}")
    links = csr_array(nx.to_scipy_sparse_array(graph, in_order(graph), weight=None), dtype=float)
    links.data[:] = 1.0
    loops = np.flatnonzero(links.diagonal())
    if len(loops):
        raise TopologyError(
            f"node {loops[0]} is linked to itself; a node's own weight is set by the weighting: "
            "graph.remove_edges_from(networkx.selfloop_edges(graph))"
        )
    if not directed and (links != links.T).nnz:
        i, j = (int(k[0]) for k in (links > links.T).nonzero())
        raise TopologyError(
            f"the graph has the edge {i} -> {j} but not {j} -> {i}; this weighting needs links in both directions: "
            "take column_stochastic (for push-sum), uniform_directed, or graph.to_undirected()"
        )
    check_connected(links, "the graph")
    return links


def check_connected(links: csr_array, what: str) -> None:
    """Every node can reach every other along nonzero entries.

    Raises:
        TopologyError: some cannot; names two components, their sizes and a node of each.
    """
    parts, part = connected_components(links, connection="strong")
    if parts > 1:
        sizes = np.bincount(part)
        a, b = np.argsort(-sizes, kind="stable")[:2]
        i, j = int(np.argmax(part == a)), int(np.argmax(part == b))
        raise TopologyError(
            f"{what} is disconnected: {parts} components, among them one of {sizes[a]} nodes (with node {i}) and one "
            f"of {sizes[b]} (with node {j}); link them, for example by edges {i} -> {j} and {j} -> {i}"
        )


def check(
    W: csr_array | np.ndarray,
    symmetric: bool = True,
    sums: Literal["both", "rows", "columns"] = "both",
    connected: bool = True,
    tolerance: float = 1e-8,
) -> None:
    """W is what gossip assumes; by default symmetric, doubly stochastic, connected and not periodic.

    Args:
        W: mixing matrix ``[n, n]``, sparse or dense.
        symmetric: require W = W^T.
        sums: which sums must be 1: rows and columns (gossip), rows (`weighted`), or columns (push-sum).
        connected: require that repeated mixing with this W alone reaches agreement, which a single round of a
            schedule that changes over time need not.
        tolerance: how far a sum may be from 1.

    Raises:
        TopologyError: it is not; names an offender, by how much it is off, and the weighting that repairs it.
    """
    W = csr_array(W, dtype=float, copy=True)
    W.eliminate_zeros()
    if W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise TopologyError(f"W has shape {list(W.shape)}; expected [n, n], one row and one column for each node")
    _check_entries(W)
    both = (W != 0).astype(float)
    mutual = not (both != both.T).nnz
    repair = (
        "metropolis(graph) gives symmetric weights that sum to 1 on any undirected graph"
        if mutual
        else "uniform_directed(graph) gives such on regular directed graphs; else take column_stochastic, for push-sum"
    )
    for axis, name in ((1, "row"), (0, "column")):
        if sums in ("both", f"{name}s"):
            _check_sums(np.asarray(W.sum(axis=axis)), name, tolerance, repair)
    if symmetric and abs(W - W.T).max() > tolerance:
        i, j = np.unravel_index(int(abs(W - W.T).argmax()), W.shape)
        raise TopologyError(f"W is not symmetric: W[{i}, {j}] = {W[i, j]:.6g}, W[{j}, {i}] = {W[j, i]:.6g}; {repair}")
    if connected:
        check_connected(W, "W")
        if not W.diagonal().any() and not nx.is_aperiodic(nx.from_scipy_sparse_array(W, create_using=nx.DiGraph)):
            raise TopologyError("W is periodic, so nodes swap their values for ever: use lazy(W), which is (I + W)/2")


def _check_entries(W: csr_array) -> None:
    bad = ~np.isfinite(W.data) | (W.data < 0)
    if bad.any():
        entries = W.tocoo()
        at = int(np.argmax(bad))
        i, j, value = entries.row[at], entries.col[at], entries.data[at]
        raise TopologyError(
            f"W[{i}, {j}] is {value:.6g}; expected finite weights, 0 or more, as metropolis(graph) has on any graph"
        )


def _check_sums(sums: np.ndarray, name: str, tolerance: float, repair: str) -> None:
    worst = int(np.argmax(abs(sums - 1)))
    off = abs(sums[worst] - 1)
    if off > tolerance:
        side = "above" if sums[worst] > 1 else "below"
        raise TopologyError(f"{name} {worst} of W sums to {sums[worst]:.10g}, {off:.3g} {side} 1; {repair}")
