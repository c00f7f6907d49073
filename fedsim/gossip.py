"""Gossip: mixing matrices W from the topology of an experiment, and the methods' requirements on them.

Checks and arithmetic of W come from `topologies`, which needs networkx and scipy. They take a third of a second to
import, so the import is deferred until a W is needed; methods with a server need none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import ref

import numpy as np

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from topologies import FromFile


class Topology(Protocol):
    """Mixing matrices of a federation, one per round."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array | np.ndarray:
        """Mixing matrix W ``[n, n]`` of a round, a sparse array or an array; ``w_ij`` weighs j's message at i."""


class EdgeList(NamedTuple):
    """One exchange of messages among the nodes of a cohort.

    Attributes:
        whole: W of the round, among all nodes.
        w: W ``[c, c]`` among the cohort, for the nodes' weights.
        to, by: ``[E]`` receiver and sender of each message, as positions in the cohort.
        receivers, senders: the same as ids.
    """

    whole: csr_array
    w: csr_array
    to: np.ndarray
    by: np.ndarray
    receivers: np.ndarray
    senders: np.ndarray


def exchange(whole: csr_array, w: csr_array, ids: np.ndarray) -> EdgeList:
    """The exchange by ``w`` among the nodes ``ids``."""
    edges = w.tocoo()
    links = (edges.row != edges.col) & (edges.data != 0)   # a zero that is stored is no link
    to, by = edges.row[links], edges.col[links]
    return EdgeList(whole, w, to, by, ids[to], ids[by])


@contextmanager
def refusals() -> Iterator[None]:
    """Convert the errors of a topology to ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from error


def mixing_matrix(topology: Topology, round: int, seed: int, n: int) -> csr_array:
    """W of a round among all ``n`` nodes, with the entries of each row sorted by node.

    Raises:
        ConfigError: the topology does not exist for ``n`` nodes, or has another number of them, or gives no matrix.
    """
    from topologies.matrix_checks import as_matrix

    with refusals():
        w = as_matrix(topology.matrix(round, seed, n), f"the mixing matrix of round {round}")
    if w.shape != (n, n):
        raise ConfigError(f"topology: the mixing matrix of round {round} is {list(w.shape)}; expected [{n}, {n}]")
    return w if w.has_sorted_indices else w.sorted_indices()


def graph_file(topology: Topology | None) -> FromFile | None:
    """The graph file that a topology reads, if it does."""
    graph = getattr(getattr(topology, "base", topology), "graph", None)   # ``base``: of LinkFailures
    return graph if type(graph).__name__ == "FromFile" else None


def ignored_weights(topology: Topology | None) -> list[str]:
    """What of a topology's graph is ignored, in words."""
    static = getattr(topology, "base", topology)
    if callable(getattr(static, "weighting", None)):       # which may read the weights of edges
        return []
    if (file := graph_file(topology)) is not None:
        return file.remarks()
    graph: Any = getattr(static, "graph", None)
    weighted = hasattr(graph, "edges") and any("weight" in attributes for *_, attributes in graph.edges(data=True))
    why = "as W follows from the links alone; a function as topology.weighting may read them"
    return [f"edge weights of the graph are ignored, {why}"] if weighted else []


def restrict(w: csr_array, active: np.ndarray, round: int, rows: bool = True) -> csr_array:
    """Restrict W to the nodes ``active``, ``[len(active)] * 2``, by `topologies.schedules.keep_nodes`.

    Args:
        w: mixing matrix ``[n, n]`` of the round.
        active: ids of the participating nodes.
        round: number of the round, for errors.
        rows: require unchanged row sums.

    Raises:
        ConfigError: row sums change, as W is not symmetric.
    """
    if len(active) == w.shape[0]:
        return w
    from topologies.matrix_checks import TOLERANCE
    from topologies.schedules import keep_nodes

    among = keep_nodes(w, active)
    off = np.asarray(among.sum(1) - w[active].sum(1))
    if rows and abs(off).max() > TOLERANCE:
        node = active[abs(off).argmax()]
        raise ConfigError(
            f"with {w.shape[0] - len(active)} of {w.shape[0]} nodes absent in round {round}, row {node} of the"
            f" mixing matrix is off by {abs(off).max():.6g} and the mean would drift, as links are directed: use full"
            " participation (sampling.fraction 1), an undirected graph, or push-sum, as SGP does"
        )
    return among


def check(
    w: csr_array, round: int, *, symmetric: bool = False, above: float = -1.0, rows: bool = True
) -> None:
    """Raise ConfigError unless W is non-negative with columns, and by default rows, that sum to 1.

    Args:
        w: mixing matrix of the round.
        round: number of the round, for errors.
        symmetric: require W = W^T.
        above: require, of a symmetric W, that all eigenvalues exceed this.
        rows: require rows that sum to 1; push-sum does not.
    """
    needs = symmetric, above, rows
    if _CHECKED and _CHECKED[0][0]() is w and needs in _CHECKED[0][1]:
        return
    _check(w, round, symmetric, above, rows)
    if not _CHECKED or _CHECKED[0][0]() is not w:
        _CHECKED[:] = [(ref(w), set())]
    _CHECKED[0][1].add(needs)


_CHECKED: list[tuple[ref[csr_array], set[tuple[bool, float, bool]]]] = []
"""The last W that was checked, and for what: W is often that of the round before."""


def _check(w: csr_array, round: int, symmetric: bool, above: float, rows: bool) -> None:
    from topologies.matrix_checks import check, is_symmetric

    name = f"the mixing matrix of round {round}"
    with refusals():
        check(w, symmetric=False, sums="both" if rows else "columns", connected=False, name=name)
    if symmetric and not is_symmetric(w):
        raise ConfigError(
            f"{name} is not symmetric, which this method needs; use an undirected graph, or a method that does without:"
            " DFedAvg, DFedSAM or GradientTracking where W is doubly stochastic, SGP on any directed graph"
        )
    if above > -1:
        from topologies import spectral

        with refusals():
            least = spectral(w).lambda_n
        if least < above + 1e-9:
            raise ConfigError(
                f"the smallest eigenvalue of {name} is {least:.4g}, and this method converges above {above:.4g} only;"
                " set --topology.lazy true, which takes (I + W) / 2"
            )


def alike(p: np.ndarray) -> bool:
    """Return whether all nodes have the same weight."""
    return bool((p == p[0]).all())


def weigh(w: csr_array, p: np.ndarray, round: int, rows: bool = True) -> csr_array:
    """Reweight W for nodes of unequal weight: ``w_ij min(1, p_j / p_i)``, the rest on the diagonal (Hastings 1970).

    Then ``p_i w_ij = p_j w_ji``: mixing preserves the mean weighted by ``p`` and converges to it. W is symmetric in the
    inner product weighted by ``p``, so methods that need a symmetric W reach the minimiser of ``sum_i p_i f_i``.

    Args:
        w: symmetric mixing matrix ``[c, c]`` of the round.
        p: ``[c]`` weights of the nodes; if they are equal, W is returned unchanged.
        round: number of the round, for errors.
        rows: whether the method needs rows that sum to 1; without them it converges to the plain mean.

    Raises:
        ConfigError: for unequal weights, W is not symmetric or ``rows`` is false.
    """
    if alike(p):
        return w
    if not rows:
        raise ConfigError("push-sum converges to the unweighted mean of the nodes: set weights to uniform")
    from scipy.sparse import csr_array, diags_array

    from topologies.matrix_checks import is_symmetric

    if not is_symmetric(w):
        raise ConfigError(
            f"unequal node weights need a symmetric mixing matrix, but that of round {round} is not: use an undirected"
            " graph, or weights uniform"
        )
    links = w.tocoo()
    off_diagonal = links.data * np.minimum(1, p[links.col] / p[links.row])
    kept = np.bincount(links.row, links.data - off_diagonal, minlength=len(p))
    return csr_array(csr_array((off_diagonal, (links.row, links.col)), w.shape) + diags_array(kept))


def check_connected(topology: Topology, seed: int, n: int) -> None:
    """Raise ConfigError if W is disconnected and the same in every round, so that some nodes never meet."""
    from topologies.matrix_checks import check_connected

    w, again = (mixing_matrix(topology, round, seed, n) for round in (1, 2))
    if _same(w, again):                                    # else components may be linked in a later round
        with refusals():
            check_connected(w, "the mixing matrix")


def check_fixed(w: csr_array, topology: Topology, round: int, seed: int, n: int) -> None:
    """Raise ConfigError unless W of a round equals that of round 1, with all ``n`` nodes."""
    if w.shape[0] < n:
        raise ConfigError(
            f"{w.shape[0]} of {n} nodes take part in round {round}, but nodes remember their neighbours' messages"
            " and must not miss any: set sampling.fraction to 1, or use DeepSqueeze"
        )
    first = mixing_matrix(topology, 1, seed, n)
    if not _same(w, first):
        raise ConfigError(
            f"the mixing matrix of round {round} is not that of round 1, and this method needs the same one in every"
            " round: use a Static topology, or a method that does without, such as GradientTracking, or compressed"
            " DeepSqueeze"
        )


def _same(w: csr_array, other: csr_array) -> bool:
    """Return whether two mixing matrices are equal."""
    return w is other or (w.nnz == other.nnz and not (w != other).nnz)
