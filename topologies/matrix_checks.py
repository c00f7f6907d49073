"""Checks of graphs and mixing matrices for gossip. Errors name the node, the amount, and the repair."""

from __future__ import annotations

from typing import Any, Literal

import networkx as nx
import numpy as np
from scipy.sparse import csr_array, issparse
from scipy.sparse.csgraph import connected_components

from topologies.errors import TopologyError
from topologies.files import Graph, in_order

TOLERANCE = 1e-8
"""Largest deviation of the sum of a row or column from 1, and of W from its transpose."""

METROPOLIS = "the weighting metropolis gives symmetric weights that sum to 1 on any undirected graph"


def adjacency(graph: Graph | csr_array, directed: bool = False) -> csr_array:
    """The checked adjacency matrix ``[n, n]`` of a graph, float64 ones where i -> j, nodes as in `in_order`.

    Args:
        graph: any networkx graph, whose parallel edges count once, or such a matrix.
        directed: whether edges may have a direction.

    Raises:
        TopologyError: it is empty, disconnected, has a self-loop, or has directions where it must not.
    """
    if isinstance(graph, csr_array):
        links = graph
    else:
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
    parts, part = connected_components(csr_array(links != 0), connection="strong")
    if parts > 1:
        sizes = np.bincount(part)
        a, b = np.argsort(-sizes, kind="stable")[:2]
        i, j = int(np.argmax(part == a)), int(np.argmax(part == b))
        raise TopologyError(
            f"{what} is disconnected: {parts} components, among them one of {sizes[a]} nodes (with node {i}) and one "
            f"of {sizes[b]} (with node {j}); link them, for example by edges {i} -> {j} and {j} -> {i}"
        )


def as_matrix(W: Any, name: str = "W") -> csr_array:
    """A mixing matrix as a CSR array of float64: itself if it is one, else a copy.

    Args:
        W: ``[n, n]``: a sparse array or matrix of any format, an array, a tensor on the CPU, or nested lists.
        name: of the matrix, for the message.

    Raises:
        TopologyError: it is nothing of that kind.
    """
    if isinstance(W, csr_array) and W.dtype == np.float64 and W.ndim == 2:
        return W
    try:
        made = csr_array(W if issparse(W) else np.asarray(W, dtype=float), dtype=float)
    except (TypeError, ValueError):
        made = None
    if made is None or made.ndim != 2:
        raise TopologyError(f"{name} is {W!r:.80}; expected a matrix [n, n]: an array, or a sparse one of scipy")
    return made


def is_symmetric(W: csr_array, tolerance: float = TOLERANCE) -> bool:
    """Test for W = W^T, up to ``tolerance`` in every entry."""
    return bool(abs(W - W.T).max() <= tolerance)


def check(
    W: csr_array | np.ndarray,
    symmetric: bool = True,
    sums: Literal["both", "rows", "columns"] = "both",
    connected: bool = True,
    tolerance: float = TOLERANCE,
    name: str = "W",
) -> None:
    """W is what gossip assumes; by default symmetric, doubly stochastic, connected and not periodic.

    Args:
        W: mixing matrix ``[n, n]``, sparse or dense.
        symmetric: require W = W^T.
        sums: which sums must be 1: rows and columns (gossip), rows (`weighted`), or columns (push-sum).
        connected: require that repeated mixing with this W alone reaches agreement, which a single round of a
            schedule that changes over time need not.
        tolerance: how far a sum may be from 1.
        name: of the matrix, for the message.

    Raises:
        TopologyError: it is not; names an offender, by how much it is off, and the weighting that repairs it.
    """
    W = csr_array(W, dtype=float)
    if W.shape[0] != W.shape[1] or W.shape[0] == 0:
        raise TopologyError(f"{name} has shape {list(W.shape)}; expected [n, n], one row and one column for each node")
    bad = ~np.isfinite(W.data) | (W.data < 0)
    if bad.any():
        entries, at = W.tocoo(), int(np.argmax(bad))
        raise TopologyError(
            f"entry [{entries.row[at]}, {entries.col[at]}] of {name} is {entries.data[at]:.6g}; expected finite"
            " weights, 0 or more, as the weighting metropolis has on any undirected graph"
        )
    for axis, line in ((1, "row"), (0, "column")):
        if sums in ("both", f"{line}s"):
            each = np.asarray(W.sum(axis=axis))
            at = int(np.argmax(abs(each - 1)))
            if (off := abs(each[at] - 1)) > tolerance:
                side = "above" if each[at] > 1 else "below"
                raise TopologyError(f"{line} {at} of {name} sums to {each[at]:.10g}, {off:.3g} {side} 1; {_repair(W)}")
    if symmetric and not is_symmetric(W, tolerance):
        i, j = (int(k) for k in np.unravel_index(int(abs(W - W.T).argmax()), W.shape))
        raise TopologyError(
            f"{name} is not symmetric: entry [{i}, {j}] is {W[i, j]:.6g}, [{j}, {i}] is {W[j, i]:.6g}; {METROPOLIS}"
        )
    if connected:
        check_connected(W, name)
        links = nx.from_scipy_sparse_array(csr_array(W != 0), create_using=nx.DiGraph)
        if not W.diagonal().any() and not nx.is_aperiodic(links):
            raise TopologyError(f"{name} is periodic: nodes swap values for ever; use lazy(W), which is (I + W)/2")


def _repair(W: csr_array) -> str:
    """The weighting whose sums are 1 on the graph of W."""
    if ((W != 0) != (W.T != 0)).nnz:
        return (
            "links are directed: the weighting uniform_directed sums to 1 where all nodes hear and reach equally many;"
            " elsewhere use push-sum (SGP) with the weighting column_stochastic"
        )
    return METROPOLIS
