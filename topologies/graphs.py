"""Undirected and directed communication graphs on nodes 0..n-1.

The exponential graph is that of Assran et al., ICML 2019 (arXiv:1811.10792), and Ying et al., NeurIPS 2021
(arXiv:2110.13363). In a directed graph the edge i -> j lets i speak to j.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from typing import Protocol

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

from topologies.errors import TopologyError
from topologies.files import FromFile, Graph, from_edges, from_networkx
from topologies.random_graphs import BarabasiAlbert, ErdosRenyi, RandomRegular, WattsStrogatz
from topologies.setting_checks import check_edges, check_n


class GraphBuilder(Protocol):
    """Interface of the classes in ``GRAPHS``: settings from which a graph of any size is made.

    Graphs of a regular structure also have ``links(n)``, the adjacency matrix, which takes a second where the graph of
    networkx takes a minute.
    """

    def build(self, n: int, seed: int) -> Graph:
        """A connected ``networkx.Graph`` (or strongly connected ``DiGraph``) on nodes 0..n-1, without self-loops.

        Args:
            n: number of nodes.
            seed: of the graphs that are random; the same seed gives the same graph.

        Raises:
            TopologyError: there is no such graph of n nodes; says for which n, or with which setting, there is one.
        """


def links_of(n: int, i: np.ndarray, j: np.ndarray, directed: bool = False) -> csr_array:
    """Adjacency matrix ``[n, n]`` of a graph with edges from ``i[k]`` to ``j[k]``, without self-loops."""
    i, j = i[i != j], j[i != j]
    if not directed:
        i, j = np.concatenate([i, j]), np.concatenate([j, i])
    links = csr_array((np.ones(len(i)), (i, j)), (n, n))   # parallel edges are summed
    links.data[:] = 1.0
    return links


def circulant_links(n: int, offsets: Iterable[int], directed: bool = False) -> csr_array:
    """`links_of` the graph `circulant`."""
    check_n(n)
    nodes, steps = np.arange(n), np.array(list(offsets), np.int64)
    return links_of(n, np.tile(nodes, len(steps)), ((nodes + steps[:, None]) % n).ravel(), directed)


def circulant(n: int, offsets: Iterable[int], directed: bool = False) -> Graph:
    """Node i linked to i + o modulo n for every offset o, never to itself."""
    check_n(n)
    return from_edges(n, ((i, (i + o) % n) for o in offsets if o % n for i in range(n)), directed)


def rectangle(n: int) -> tuple[int, int]:
    """Rows and columns of the most square rectangle of n nodes, rows <= columns: 10 is 2 x 5, 20 is 4 x 5."""
    rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    return rows, n // rows


def lattice(n: int, periodic: bool) -> Graph:
    """The most square grid or torus of n nodes, row by row; n must not be an odd prime."""
    return from_networkx(nx.grid_2d_graph(*_sides(n, periodic), periodic=periodic))


def lattice_links(n: int, periodic: bool) -> csr_array:
    """`links_of` the graph `lattice`."""
    at = np.arange(n).reshape(_sides(n, periodic))
    pairs = [(at[:-1], at[1:]), (at[:, :-1], at[:, 1:])]
    if periodic:
        pairs += [(at[-1], at[0]), (at[:, -1], at[:, 0])]
    i, j = (np.concatenate([nodes.ravel() for nodes in side]) for side in zip(*pairs, strict=True))
    return links_of(n, i, j)


def _sides(n: int, periodic: bool) -> tuple[int, int]:
    check_n(n)
    rows, columns = rectangle(n)
    if rows == 1 and n > 2:
        name, line = ("torus", "Ring()") if periodic else ("grid", "Path()")
        near = [m for m in (n - 1, n + 1) if rectangle(m)[0] > 1]
        sizes = " or ".join(f"n={m} ({rectangle(m)[0]}x{rectangle(m)[1]})" for m in near)
        raise TopologyError(f"n={n} is prime: a {name} of 1x{n} is a line; use {sizes}, or {line} if that is meant")
    return rows, columns


@dataclass(frozen=True)
class Ring:
    """Every node linked to the next and the previous one."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``."""
        return circulant(n, [1])

    def links(self, n: int) -> csr_array:
        """The adjacency matrix ``[n, n]`` of the same graph, made without it."""
        return circulant_links(n, [1])


@dataclass(frozen=True)
class Path:
    """A ring with one link cut."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``."""
        check_n(n)
        return from_edges(n, pairwise(range(n)))

    def links(self, n: int) -> csr_array:
        """The adjacency matrix ``[n, n]`` of the same graph, made without it."""
        check_n(n)
        return links_of(n, np.arange(n - 1), np.arange(1, n))


@dataclass(frozen=True)
class Grid:
    """The most square rectangle of nodes, each linked to the nodes left, right, above and below; no wrap-around."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; n must not be an odd prime."""
        return lattice(n, periodic=False)

    def links(self, n: int) -> csr_array:
        """The adjacency matrix ``[n, n]`` of the same graph, made without it."""
        return lattice_links(n, periodic=False)


@dataclass(frozen=True)
class Torus:
    """A grid whose rows and columns are rings; with only two rows, the two are linked once."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; n must not be an odd prime."""
        return lattice(n, periodic=True)

    def links(self, n: int) -> csr_array:
        """The adjacency matrix ``[n, n]`` of the same graph, made without it."""
        return lattice_links(n, periodic=True)


@dataclass(frozen=True)
class Hypercube:
    """Nodes linked if their numbers differ in one binary digit."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; n must be a power of two."""
        self._check(n)
        return from_edges(n, ((i, i ^ 1 << k) for k in range(n.bit_length() - 1) for i in range(n)))

    def links(self, n: int) -> csr_array:
        """The adjacency matrix ``[n, n]`` of the same graph, made without it."""
        self._check(n)
        nodes, bits = np.arange(n), np.arange(n.bit_length() - 1)
        return links_of(n, np.tile(nodes, len(bits)), (nodes ^ 1 << bits[:, None]).ravel())

    def _check(self, n: int) -> None:
        check_n(n)
        if n & (n - 1):
            below = 1 << (n.bit_length() - 1)
            raise TopologyError(
                f"a hypercube has a power of two of nodes, not n={n}: use n={below} or n={2 * below}, "
                "or Exponential(), which has about as many links and any n"
            )


@dataclass(frozen=True)
class Exponential:
    """Every node i linked to i + 2^k and i - 2^k modulo n, for all 2^k < n.

    Args:
        directed: only from i to i + 2^k, which halves the traffic.
    """

    directed: bool = False

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``."""
        check_n(n)
        return circulant(n, [1 << k for k in range((n - 1).bit_length())], self.directed)

    def links(self, n: int) -> csr_array:
        """The adjacency matrix ``[n, n]`` of the same graph, made without it."""
        check_n(n)
        return circulant_links(n, [1 << k for k in range((n - 1).bit_length())], self.directed)


@dataclass(frozen=True)
class Complete:
    """Every node linked to every other."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``."""
        check_n(n)
        check_edges(self, n, n * (n - 1) / 2)
        return from_edges(n, combinations(range(n), 2))


@dataclass(frozen=True)
class Star:
    """Node 0 linked to all others."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``."""
        check_n(n)
        return from_edges(n, ((0, i) for i in range(1, n)))


@dataclass(frozen=True)
class TwoCliques:
    """Two complete halves joined by a single link, a bottleneck; the first half is the larger if n is odd."""

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``."""
        check_n(n)
        check_edges(self, n, n * n / 4)
        first = (n + 1) // 2
        halves = combinations(range(first), 2), combinations(range(first, n), 2)
        return from_edges(n, chain(*halves, [(first - 1, first)] if n > 1 else []))


GRAPHS: tuple[type[GraphBuilder], ...] = (
    Ring,
    Path,
    Grid,
    Torus,
    Hypercube,
    Exponential,
    Complete,
    Star,
    ErdosRenyi,
    RandomRegular,
    WattsStrogatz,
    BarabasiAlbert,
    TwoCliques,
    FromFile,
)
