"""The mixing matrix W of a graph: ``x_i <- sum_j W[i, j] x_j``, as a scipy CSR array ``[n, n]`` of float64.

W[i, j] > 0 off the diagonal means that j speaks to i, so in a directed graph it stands for the edge j -> i.
Sources: Xiao and Boyd, Systems & Control Letters 53 (2004) for Metropolis and maximum-degree weights; Boyd, Diaconis
and Xiao, SIAM Review 46 (2004) for the fastest; Kempe, Dobra and Gehrke, FOCS 2003 for push-sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array, triu

from topologies.errors import TopologyError
from topologies.files import Graph
from topologies.interior_point import fastest_weights
from topologies.matrix_checks import adjacency

FASTEST_NODES = 64
Weighting: TypeAlias = Callable[[Graph], Any]
"""A function from a graph on nodes 0..n-1, with the attributes of its edges, to W, an array or a sparse array. (Its
type does not say so, as the command line would list their subclasses.) Those here return sparse arrays, and take the
adjacency matrix too."""


def fill_diagonal(links: csr_array) -> csr_array:
    """The matrix with these entries off the diagonal whose rows sum to 1."""
    return csr_array(links + diags_array(1 - links.sum(axis=1)))


def metropolis(graph: Graph | csr_array) -> csr_array:
    """``1 / (1 + max(deg_i, deg_j))`` on every link: symmetric, needs to know only the neighbours' degrees."""
    links = adjacency(graph).tocoo()
    i, j = links.row, links.col
    offer = 1 / (1 + np.bincount(i, minlength=links.shape[0]))
    return fill_diagonal(csr_array((np.minimum(offer[i], offer[j]), (i, j)), links.shape))


def max_degree(graph: Graph | csr_array) -> csr_array:
    """``1 / (1 + maximum degree)`` on every link: symmetric, the same weight everywhere."""
    links = adjacency(graph)
    return fill_diagonal(links / (1 + links.sum(axis=1).max()))


def uniform(graph: Graph | csr_array) -> csr_array:
    """Every node averages itself and its neighbours evenly: symmetric, but on regular graphs only."""
    adjacency(graph)  # no directions
    return uniform_directed(graph)


def uniform_directed(graph: Graph | csr_array) -> csr_array:
    """Every node averages itself and those it hears evenly: doubly stochastic if all hear, and reach, equally many.

    Raises:
        TopologyError: the degrees differ; names two nodes.
    """
    heard = adjacency(graph, directed=True).T.tocsr()
    degree = heard.sum(axis=1)
    for count, verb in ((degree, "hears"), (heard.sum(axis=0), "speaks to")):
        i = int(np.argmax(count != degree[0]))
        if count[i] != degree[0]:
            raise TopologyError(
                f"uniform weights need a regular graph, but node 0 hears {degree[0]:.0f} nodes and node {i} {verb} "
                f"{count[i]:.0f}: take metropolis, or column_stochastic (for push-sum) if the graph is directed"
            )
    return csr_array((heard + eye_array(len(degree))) / (degree[0] + 1))


def column_stochastic(graph: Graph | csr_array) -> csr_array:
    """Every node divides its value evenly among itself and those it speaks to: columns sum to 1, rows need not.

    Preserves the sum of values, not the agreement on their mean, which push-sum restores by mixing a weight along with
    the value. Works on any strongly connected graph, directed or not.
    """
    spoken = adjacency(graph, directed=True)
    return csr_array((spoken + eye_array(spoken.shape[0])).T @ diags_array(1 / (1 + spoken.sum(axis=1))))


def fastest(graph: Graph | csr_array) -> csr_array:
    """The symmetric nonnegative weights with the smallest lam, by convex optimisation, for up to 64 nodes.

    lam is within 1e-5 of the smallest possible: an interior-point method stops at a duality gap of 1e-8, and links that
    it gives a weight below 1e-7 are then left out, so that nothing is sent over them.

    Raises:
        TopologyError: the graph has more than 64 nodes.
    """
    links = adjacency(graph)
    n = links.shape[0]
    if n > FASTEST_NODES:
        raise TopologyError(f"fastest weights are computed for up to {FASTEST_NODES} nodes, not n={n}: take metropolis")
    if n == 1:
        return csr_array(np.ones((1, 1)))
    upper = triu(links, k=1).tocoo()
    i, j = upper.row, upper.col
    weight = fastest_weights(n, i, j, gap=1e-8)
    kept = weight >= 1e-7
    i, j, weight = i[kept], j[kept], weight[kept]
    half = csr_array((weight, (i, j)), (n, n))
    return fill_diagonal(half + half.T)


def lazy(W: csr_array) -> csr_array:
    """``(I + W) / 2``: half as fast, but without eigenvalues below 0, so never periodic."""
    return csr_array((eye_array(W.shape[0]) + W) / 2)


WEIGHTINGS: dict[str, Callable[[Graph | csr_array], csr_array]] = {
    f.__name__: f for f in (metropolis, max_degree, uniform, fastest, uniform_directed, column_stochastic)
}
WeightingName = Literal["metropolis", "max_degree", "uniform", "fastest", "uniform_directed", "column_stochastic"]
