"""Random graphs, seeded, and drawn again until they are connected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx

from topologies.errors import TopologyError
from topologies.files import Graph
from topologies.random import generator
from topologies.setting_checks import check_edges, check_n, probability, whole

ATTEMPTS = 100


def connected(settings: Any, n: int, seed: int, draw: Callable[[int], Graph], fix: str) -> Graph:
    """The first connected graph among ``ATTEMPTS`` draws.

    Args:
        settings: the graph's settings, for the error and to tell the streams of random numbers apart.
        n: number of nodes.
        seed: of the run.
        draw: a graph from a 32-bit seed.
        fix: which settings would give a connected graph.

    Raises:
        TopologyError: none was connected.
    """
    for attempt in range(ATTEMPTS):
        graph = draw(int(generator(type(settings).__name__, seed, attempt).integers(2**32)))
        if nx.is_connected(graph):
            return graph
    raise TopologyError(f"none of {ATTEMPTS} draws of {settings!r} with n={n} was connected: {fix}")


def draw_regular(degree: int, n: int, seed: int) -> Graph:
    """A random graph of n nodes with ``degree`` links each, connected or not.

    Dense ones are drawn as the complement of sparse ones, since pairing link ends gets stuck when few pairs are free.
    """
    dense = 2 * degree >= n
    graph: Graph = nx.random_regular_graph(n - 1 - degree if dense else degree, n, seed)
    return nx.complement(graph) if dense else graph


def check_degree(settings: Any, degree: int, n: int) -> None:
    """A graph of n nodes with ``degree`` links each exists."""
    check_n(n)
    if degree >= n:
        raise TopologyError(f"{settings!r} needs n of at least {degree + 1}, got n={n}")
    if degree * n % 2:
        others = " or ".join(str(d) for d in (degree - 1, degree + 1) if 0 < d < n)
        raise TopologyError(f"{settings!r} with n={n}: n times degree is odd; degree may be {others}, or n even")
    check_edges(settings, n, n * degree / 2)


@dataclass(frozen=True)
class ErdosRenyi:
    """Every pair of nodes linked with the same probability (Gilbert's G(n, p)), given that the graph is connected.

    Args:
        p: probability of a link.
    """

    p: float

    def __post_init__(self) -> None:
        probability(self, "p")

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; p must be about ln(n)/n or more."""
        check_n(n)
        check_edges(self, n, self.p * n * (n - 1) / 2)
        enough = min(1.0, (math.log(n) + 4) / n)  # connected with probability about exp(-exp(-4)) = 0.98
        fix = f"take p of at least {math.ceil(1e4 * enough) / 1e4:g}"
        return connected(self, n, seed, lambda s: nx.fast_gnp_random_graph(n, self.p, s), fix)


@dataclass(frozen=True)
class RandomRegular:
    """Random among the connected graphs in which every node has the same number of links.

    Args:
        degree: number of links of every node.
    """

    degree: int

    def __post_init__(self) -> None:
        whole(self, "degree", 1)

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; n times the degree must be even."""
        check_degree(self, self.degree, n)
        fix = "take a degree of at least 3, or Ring(), which is the connected graph of degree 2"
        return connected(self, n, seed, lambda s: draw_regular(self.degree, n, s), fix)


@dataclass(frozen=True)
class WattsStrogatz:
    """A small world: a ring of near neighbours, some of whose links are moved at random (Nature 393, 1998).

    Args:
        k: number of nearest neighbours on the ring, even.
        p: probability that a link is moved.
    """

    k: int
    p: float

    def __post_init__(self) -> None:
        whole(self, "k", 2)
        if self.k % 2:
            raise TopologyError(f"WattsStrogatz.k is {self.k}; expected an even number, half on each side")
        probability(self, "p")

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; n must be above k."""
        check_n(n)
        if self.k >= n:
            raise TopologyError(f"{self!r} needs n of at least {self.k + 1}, got n={n}")
        check_edges(self, n, n * self.k / 2)
        fix = f"take k of at least {self.k + 2}, or a smaller p"
        return connected(self, n, seed, lambda s: nx.watts_strogatz_graph(n, self.k, self.p, s), fix)


@dataclass(frozen=True)
class BarabasiAlbert:
    """Preferential attachment: each new node links to m old ones, the likelier the more links these have.

    Source: Barabási and Albert, Science 286 (1999).

    Args:
        m: number of links of a new node.
    """

    m: int

    def __post_init__(self) -> None:
        whole(self, "m", 1)

    def build(self, n: int, seed: int) -> Graph:
        """See ``GraphBuilder``; n must be above m."""
        check_n(n)
        if self.m >= n:
            raise TopologyError(f"{self!r} needs n of at least {self.m + 1}, got n={n}")
        check_edges(self, n, n * self.m)
        graph: Graph = nx.barabasi_albert_graph(n, self.m, int(generator("BarabasiAlbert", seed, 0).integers(2**32)))
        return graph
