"""Gossip: rows of a stack mixed by a sparse matrix W, ``x_i <- sum_j w_ij x_j``, without ever forming n x n.

A row is the weighted sum of its neighbours' rows in the order of their numbers, whichever rows are mixed together. Some
nodes are done at a time where nodes have few neighbours, else some columns at a time, as many as fit the processor's
cache, so that a row that is fetched for one neighbour is still there for the next.

scipy.sparse takes a third of a second to import, so it is imported where a W is made: with a server there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedsim.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DENSE_NODES = 64
"""Up to here all singular values of W are computed."""
TOLERANCE = 1e-8
"""Largest deviation of a row or column sum from 1."""


class Topology(Protocol):
    """Who talks to whom in a round, and with which weights."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """Mixing matrix W ``[n, n]`` of a round; ``w_ij`` weighs what i hears from j."""


def mixing_matrix(topology: Topology, round: int, seed: int, n: int) -> csr_array:
    """W of a round among all ``n`` nodes, with the weights of a row in the order of the nodes.

    Raises:
        ConfigError: the topology cannot be had with so many nodes, or is of other ones.
    """
    try:
        w = topology.matrix(round, seed, n)
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from error
    if w.shape != (n, n):
        raise ConfigError(f"topology: the mixing matrix of round {round} is {list(w.shape)}; expected [{n}, {n}]")
    return w if w.has_sorted_indices else w.sorted_indices()


def restrict(w: csr_array, active: np.ndarray, round: int, rows: bool = True) -> csr_array:
    """W among the nodes ``active`` only, ``[len(active)] * 2``: what a node would have sent to those who are away it
    keeps.

    Symmetric doubly stochastic matrices stay so; of other matrices the columns keep their sums, and so the mass that
    push-sum spreads. A node that has nobody left to speak to keeps every bit.

    Args:
        w: mixing matrix ``[n, n]`` of the round.
        active: who takes part.
        round: for the message.
        rows: whether the rows must sum to 1 as before.

    Raises:
        ConfigError: they no longer do, as W is not symmetric.
    """
    from scipy.sparse import csr_array, diags_array

    if len(active) == w.shape[0]:
        return w
    inner = csr_array(w[active][:, active])
    said = np.asarray(w[:, active].sum(0))
    own = inner.diagonal()
    links = csr_array(inner - diags_array(own))
    links.eliminate_zeros()
    own += said - np.asarray(inner.sum(0))                 # what each would have sent to those who are away
    alone = np.bincount(links.indices, minlength=len(active)) == 0
    own[alone & (abs(own - 1) < TOLERANCE)] = 1.0          # which a sum of weights may miss by a bit
    among = csr_array(links + diags_array(own))
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
    if w.data.size and w.data.min() < 0:
        entries, at = w.tocoo(), int(w.tocoo().data.argmin())
        raise ConfigError(
            f"the mixing matrix of round {round} has the weight {entries.data[at]:g} in row {entries.row[at]}, column"
            f" {entries.col[at]}; expected 0 or more, as the weighting metropolis has on any undirected graph"
        )
    for what, axis, needed in (("column", 0, True), ("row", 1, rows)):
        sums = np.asarray(w.sum(axis))
        worst = int(np.abs(sums - 1).argmax())
        if needed and not abs(sums[worst] - 1) <= TOLERANCE:  # NaN is not
            raise ConfigError(
                f"{what} {worst} of the mixing matrix of round {round} sums to {sums[worst]:.6g},"
                f" {abs(sums[worst] - 1):.3g} {'below' if sums[worst] < 1 else 'above'} 1; {_repair(w)}"
            )
    if symmetric and abs(w - w.T).max() > TOLERANCE:
        raise ConfigError(
            f"the mixing matrix of round {round} is not symmetric, which this method needs; use an undirected graph,"
            " or a method that does without: DFedAvg, DFedSAM or GradientTracking where W is doubly stochastic, SGP on"
            " any directed graph"
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

    if abs(w - w.T).max() > TOLERANCE:
        raise ConfigError(
            f"weights of nodes need a symmetric mixing matrix, which that of round {round} is not: use an undirected"
            " graph, or weights uniform"
        )
    links = w.tocoo()
    said = links.data * np.minimum(1, p[links.col] / p[links.row])
    kept = np.bincount(links.row, links.data - said, minlength=len(p))
    return csr_array(csr_array((said, (links.row, links.col)), w.shape) + diags_array(kept))


def _repair(w: csr_array) -> str:
    """How to get weights that sum to 1."""
    links = w != 0
    if (links != links.T).nnz:
        return (
            "links are directed: the weighting uniform_directed sums to 1 where all nodes hear and reach equally many;"
            " elsewhere use SGP with the weighting column_stochastic"
        )
    return "the weighting metropolis gives rows and columns that sum to 1 on any undirected graph"


def check_connected(topology: Topology, seed: int, n: int) -> None:
    """Raise ConfigError where some nodes can never hear from others: W is the same in every round, and falls apart."""
    from scipy.sparse.csgraph import connected_components

    w, again = (mixing_matrix(topology, round, seed, n) for round in (1, 2))
    if w is not again and (w.nnz != again.nnz or (w != again).nnz):
        return                                             # it changes: what is apart now may meet later
    parts, part = connected_components(w, connection="strong")
    if parts > 1:
        raise ConfigError(
            f"topology: the mixing matrix is disconnected, {parts} groups of nodes never hear of each other, such as"
            f" those of node 0 and of node {int(np.argmax(part != part[0]))}; link them"
        )


def contraction_bound(w: csr_array) -> float | None:
    """What an exchange by a doubly stochastic W leaves of the consensus distance at most: its second largest singular
    value ``||W - 1 1^T / n||``, which is lambda where W is symmetric. None where the iteration does not converge.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n, back = w.shape[0], csr_array(w.T)
    if n <= DENSE_NODES:
        return float(np.linalg.norm(w.toarray() - 1 / n, 2))

    def there_and_back(x: np.ndarray) -> np.ndarray:
        y = back @ (w @ (x - x.mean()))
        return np.asarray(y - y.mean())

    square = LinearOperator((n, n), there_and_back, dtype=float)
    start = np.random.default_rng(0).standard_normal(n)
    options = {"v0": start, "tol": 1e-10, "ncv": 40, "maxiter": 100, "return_eigenvectors": False}
    try:
        return float(eigsh(square, 1, which="LA", **options)[0] ** 0.5)
    except ArpackNoConvergence:
        return None


def check_fixed(w: csr_array, topology: Topology, round: int, seed: int, n: int) -> None:
    """Raise ConfigError unless W of a round is that of round 1 among all ``n`` nodes."""
    if w.shape[0] < n:
        raise ConfigError(
            f"{w.shape[0]} of {n} nodes take part in round {round}, but nodes remember what each neighbour has sent"
            " and miss nothing only if everybody takes part: set sampling.fraction to 1, or use DeepSqueeze"
        )
    first = mixing_matrix(topology, 1, seed, n)
    if w is not first and (w.nnz != first.nnz or (w != first).nnz):
        raise ConfigError(
            f"the mixing matrix of round {round} is not that of round 1, but nodes remember what each neighbour has"
            " sent: use a Static topology, or DeepSqueeze"
        )
