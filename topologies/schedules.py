"""Mixing matrices that change from round to round, as functions of (round, seed).

Sources: one-peer exponential graph: Assran et al., ICML 2019 (arXiv:1811.10792), Ying et al., NeurIPS 2021
(arXiv:2110.13363); random matchings: Boyd et al., IEEE Trans. Information Theory 52 (2006).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Protocol

import networkx as nx
import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array

from topologies.errors import TopologyError
from topologies.files import FromFile, Graph, from_networkx
from topologies.graphs import GraphBuilder, Ring
from topologies.matrix_checks import TOLERANCE, as_matrix, is_symmetric
from topologies.mixing import WEIGHTINGS, Weighting, WeightingName, lazy
from topologies.random import generator
from topologies.random_graphs import check_degree, draw_regular
from topologies.setting_checks import check_n, probability, whole


class MixingSchedule(Protocol):
    """Interface of the classes in ``SCHEDULES``."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """W of this round, ``[n, n]`` float64, ``x_i <- sum_j W[i, j] x_j``; not to be written to.

        Args:
            round: number of the round, 0 or more.
            seed: of the run; the same (round, seed) gives the same matrix, in whatever order rounds are asked for.
            n: number of nodes.

        Raises:
            TopologyError: the settings cannot be had with n nodes.
        """


def drop_links(W: csr_array, lost: np.ndarray) -> csr_array:
    """Symmetric W without the off-diagonal entries that ``lost`` marks, in the order of ``W.tocoo()``.

    Their weight goes to the diagonal at both ends, so W stays symmetric and doubly stochastic.
    """
    entries, n = W.tocoo(), W.shape[0]
    i, j, weight = entries.row, entries.col, entries.data
    gone, kept = (i != j) & lost, (i != j) & ~lost
    own = W.diagonal() + np.bincount(i[gone], weight[gone], n)
    return _with_own(csr_array((weight[kept], (i[kept], j[kept])), (n, n)), own)


def keep_nodes(W: csr_array, active: np.ndarray) -> csr_array:
    """W among the nodes ``active`` only, ``[len(active)] * 2``: a node keeps what it would have sent to the others.

    Columns keep their sums, and so the mass that push-sum spreads; symmetric doubly stochastic matrices stay so.
    """
    inner = csr_array(W[active][:, active])
    own = inner.diagonal()
    links = csr_array(inner - diags_array(own))
    links.eliminate_zeros()
    own += np.asarray(W[:, active].sum(0)) - np.asarray(inner.sum(0))
    return _with_own(links, own)


def _with_own(links: csr_array, own: np.ndarray) -> csr_array:
    """W of weights off the diagonal and on it; a node that speaks to nobody keeps every bit."""
    alone = np.bincount(links.indices, minlength=len(own)) == 0
    own[alone & (abs(own - 1) < TOLERANCE)] = 1.0          # which a sum of weights may miss by a bit
    return csr_array(links + diags_array(own))


def average_with(partner: np.ndarray) -> csr_array:
    """Each node i averages with ``partner[i]``, a permutation of 0..n-1; alone where this is i itself."""
    n = len(partner)
    i = np.arange(n)
    return csr_array((np.full(2 * n, 0.5), (np.tile(i, 2), np.concatenate([i, partner]))), (n, n))


@lru_cache(maxsize=8)
def _fixed(schedule: Static, reading: object, seed: int, n: int) -> csr_array:
    graph, weighting = schedule.graph, schedule.weighting
    links = getattr(graph, "links", None)
    if not callable(weighting) and links is not None:
        W = WEIGHTINGS[weighting](links(n))
    else:
        built = from_networkx(graph, n) if isinstance(graph, nx.Graph) else graph.build(n, seed)
        W = as_matrix(weighting(built), "what weighting gave") if callable(weighting) else WEIGHTINGS[weighting](built)
    return lazy(W) if schedule.lazy else W


@dataclass(frozen=True)
class Static:
    """The same W in every round, built once.

    Args:
        graph: who is linked to whom, by its settings, or as a networkx graph, of which a copy is kept.
        weighting: how W is made of the graph, by name, or as a function from a graph to W. By name it ignores weights
            of edges; a function finds them in ``graph.edges[i, j]["weight"]``, and returns an array or a sparse array.
        lazy: mix by (I + W)/2 instead.
    """

    graph: GraphBuilder | Graph = field(default_factory=Ring)
    weighting: WeightingName | Weighting = "metropolis"
    lazy: bool = False

    def __post_init__(self) -> None:
        if not callable(self.weighting) and self.weighting not in WEIGHTINGS:
            nearest = get_close_matches(str(self.weighting), WEIGHTINGS, 1, cutoff=0)[0]
            raise TopologyError(
                f"weighting is {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}: did you mean {nearest!r}?"
            )
        if isinstance(self.graph, nx.Graph):               # a graph that changes later is another one
            object.__setattr__(self, "graph", nx.freeze(self.graph.copy()))
        if isinstance(self.graph, FromFile):               # which may change: read for each Static, and once in a run
            object.__setattr__(self, "_reading", object())

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """See ``MixingSchedule``; random graphs differ from seed to seed, not from round to round."""
        return _fixed(self, getattr(self, "_reading", None), seed, n)


@dataclass(frozen=True)
class OnePeerExponential:
    """In round t every node i averages with what i - 2^(t mod ceil(log2 n)) sends it: one message each.

    Doubly stochastic, not symmetric. If n is a power of two, log2 n rounds in a row give everyone the exact mean.
    """

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """See ``MixingSchedule``."""
        check_n(n)
        distance = 1 << round % max(1, (n - 1).bit_length())
        return average_with((np.arange(n) - distance) % n)


@dataclass(frozen=True)
class RandomMatching:
    """In every round the nodes pair up at random, and pairs average; one node stays alone if n is odd."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """See ``MixingSchedule``."""
        check_n(n)
        order = generator("RandomMatching", seed, round).permutation(n)
        left, right = order[: n // 2], order[n // 2 : n // 2 * 2]
        partner = np.arange(n)
        partner[left], partner[right] = right, left
        return average_with(partner)


@dataclass(frozen=True)
class RandomNeighbours:
    """In every round a new random graph in which each node has the same number of neighbours, averaged evenly.

    Symmetric and doubly stochastic, unlike neighbours that each node picks for itself, under which the mean drifts.

    Args:
        degree: number of neighbours of every node.
    """

    degree: int

    def __post_init__(self) -> None:
        whole(self, "degree", 1)

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """See ``MixingSchedule``; n times the degree must be even."""
        check_degree(self, self.degree, n)
        graph = draw_regular(self.degree, n, int(generator("RandomNeighbours", seed, round).integers(2**32)))
        links = nx.to_scipy_sparse_array(graph, range(n))
        return csr_array((links + eye_array(n)) / (self.degree + 1))


@dataclass(frozen=True)
class LinkFailures:
    """Every link of another schedule fails in a round with the same probability, independently, in both directions.

    A failed link's weight goes to the diagonal at both ends, so W stays symmetric and doubly stochastic.

    Args:
        base: the schedule whose links fail; its W must be symmetric.
        probability: probability that a link fails in a round.
    """

    base: MixingSchedule
    probability: float

    def __post_init__(self) -> None:
        probability(self, "probability")

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """See ``MixingSchedule``."""
        W = as_matrix(self.base.matrix(round, seed, n))
        if not is_symmetric(W):
            raise TopologyError(
                f"link failures need a symmetric W, and that of {self.base!r} is not: take an undirected graph"
            )
        i, j = W.nonzero()
        _, link = np.unique(np.minimum(i, j).astype(np.int64) * n + np.maximum(i, j), return_inverse=True)
        draws = generator(f"LinkFailures of {type(self.base).__name__}", seed, round).random(len(W.data))
        return drop_links(W, draws[link] < self.probability)


SCHEDULES: tuple[type[MixingSchedule], ...] = (
    Static,
    OnePeerExponential,
    RandomMatching,
    RandomNeighbours,
    LinkFailures,
)
