"""Gossip: mixing matrices W from the topology of an experiment, and what the methods require of them.

The checks of W, and its arithmetic, are those of `topologies`. It needs networkx and scipy, which take a third of a
second to import, so it is imported where there is a W: with a server there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Topology(Protocol):
    """Who talks to whom in a round, and with which weights."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """Mixing matrix W ``[n, n]`` of a round; ``w_ij`` weighs what i hears from j."""


@contextmanager
def refusals() -> Iterator[None]:
    """Raise the errors of a topology as ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from error


def mixing_matrix(topology: Topology, round: int, seed: int, n: int) -> csr_array:
    """W of a round among all ``n`` nodes, with the weights of a row in the order of the nodes.

    Raises:
        ConfigError: the topology cannot be had with so many nodes, or is of other ones.
    """
    with refusals():
        w = topology.matrix(round, seed, n)
    if w.shape != (n, n):
        raise ConfigError(f"topology: the mixing matrix of round {round} is {list(w.shape)}; expected [{n}, {n}]")
    return w if w.has_sorted_indices else w.sorted_indices()


def restrict(w: csr_array, active: np.ndarray, round: int, rows: bool = True) -> csr_array:
    """W among the nodes ``active`` only, ``[len(active)] * 2``, as `topologies.schedules.keep_nodes` makes it.

    Args:
        w: mixing matrix ``[n, n]`` of the round.
        active: who takes part.
        round: for the message.
        rows: whether the rows must sum to 1 as before.

    Raises:
        ConfigError: they no longer do, as W is not symmetric.
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
            f"with {w.shape[0] - len(active)} of {w.shape[0]} nodes away in round {round}, row {node} of the mixing"
            f" matrix is off by {abs(off).max():.6g} and the mean would drift, as links are directed: let everybody"
            " take part (sampling.fraction 1), use an undirected graph, or push-sum, as SGP does"
        )
    return among


def check(w: csr_array, round: int, *, symmetric: bool = False, rows: bool = True) -> None:
    """Raise ConfigError unless W is non-negative, its columns sum to 1, and (unless told otherwise) its rows do.

    Args:
        w: mixing matrix of the round.
        round: for the message.
        symmetric: whether the method needs W = W^T.
        rows: whether the rows must sum to 1 as well; push-sum does without.
    """
    from topologies.matrix_checks import check, is_symmetric

    name = f"the mixing matrix of round {round}"
    with refusals():
        check(w, symmetric=False, sums="both" if rows else "columns", connected=False, name=name)
    if symmetric and not is_symmetric(w):
        raise ConfigError(
            f"{name} is not symmetric, which this method needs; use an undirected graph, or a method that does without:"
            " DFedAvg, DFedSAM or GradientTracking where W is doubly stochastic, SGP on any directed graph"
        )


def alike(p: np.ndarray) -> bool:
    """Whether all nodes count equally."""
    return bool((p == p[0]).all())


def weigh(w: csr_array, p: np.ndarray, round: int, rows: bool = True) -> csr_array:
    """W for nodes that count differently: ``w_ij min(1, p_j / p_i)``, and a node keeps the rest (Hastings 1970).

    Then ``p_i w_ij = p_j w_ji``: mixing preserves the mean weighted by ``p``, and leads to it. In the inner product
    weighted by ``p``, W is symmetric, so that methods that need a symmetric W reach the minimiser of ``sum_i p_i f_i``.

    Args:
        w: symmetric mixing matrix ``[c, c]`` of the round.
        p: ``[c]`` weights of the nodes; where they are equal, W stays as it is.
        round: for the message.
        rows: whether the method needs rows that sum to 1; those that do without find the plain mean.

    Raises:
        ConfigError: W is not symmetric, or rows need not sum to 1.
    """
    if alike(p):
        return w
    if not rows:
        raise ConfigError("push-sum finds the plain mean of all nodes, without weights: set weights to uniform")
    from scipy.sparse import csr_array, diags_array

    from topologies.matrix_checks import is_symmetric

    if not is_symmetric(w):
        raise ConfigError(
            f"weights of nodes need a symmetric mixing matrix, which that of round {round} is not: use an undirected"
            " graph, or weights uniform"
        )
    links = w.tocoo()
    said = links.data * np.minimum(1, p[links.col] / p[links.row])
    kept = np.bincount(links.row, links.data - said, minlength=len(p))
    return csr_array(csr_array((said, (links.row, links.col)), w.shape) + diags_array(kept))


def check_connected(topology: Topology, seed: int, n: int) -> None:
    """Raise ConfigError where some nodes can never hear from others: W is the same in every round, and falls apart."""
    from topologies.matrix_checks import check_connected

    w, again = (mixing_matrix(topology, round, seed, n) for round in (1, 2))
    if _same(w, again):                                    # else what is apart now may meet later
        with refusals():
            check_connected(w, "the mixing matrix")


def check_fixed(w: csr_array, topology: Topology, round: int, seed: int, n: int) -> None:
    """Raise ConfigError unless W of a round is that of round 1 among all ``n`` nodes."""
    if w.shape[0] < n:
        raise ConfigError(
            f"{w.shape[0]} of {n} nodes take part in round {round}, but nodes remember what each neighbour has sent"
            " and miss nothing only if everybody takes part: set sampling.fraction to 1, or use DeepSqueeze"
        )
    first = mixing_matrix(topology, 1, seed, n)
    if not _same(w, first):
        raise ConfigError(
            f"the mixing matrix of round {round} is not that of round 1, but nodes remember what each neighbour has"
            " sent: use a Static topology, or DeepSqueeze"
        )


def _same(w: csr_array, other: csr_array) -> bool:
    """Whether two mixing matrices are equal."""
    return w is other or (w.nnz == other.nnz and not (w != other).nnz)
