"""Gossip: rows of a stack mixed by a sparse matrix W, ``x_i <- sum_j w_ij x_j``, without ever forming n x n.

A row is the weighted sum of its neighbours' rows in the order of their numbers, whichever rows are mixed together. Some
nodes are done at a time where nodes have few neighbours, else some columns at a time, as many as fit the processor's
cache, so that a row that is fetched for one neighbour is still there for the next.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from fedsim.errors import ConfigError

CHUNK_BYTES = 4 * 2**20
"""Bytes of the stack that are mixed at a time."""
FEW = 5
"""Mean number of weights in a row of W up to which fetching neighbours' rows again costs less than copying columns."""
TOLERANCE = 1e-8
"""Largest deviation of a row or column sum from 1."""


class Topology(Protocol):
    """Who talks to whom in a round, and with which weights."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """Mixing matrix W ``[n, n]`` of a round; ``w_ij`` weighs what i hears from j."""


def mixing_matrix(topology: Topology, round: int, seed: int, active: np.ndarray, n: int) -> csr_array:
    """W of a round among the nodes ``active`` of ``n``, in their order.

    Raises:
        ConfigError: the topology cannot be had with so many nodes, or is of other ones.
    """
    try:
        w = topology.matrix(round, seed, n)
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from error
    if w.shape != (n, n):
        raise ConfigError(f"topology: the mixing matrix of round {round} is {list(w.shape)}; expected [{n}, {n}]")
    return restrict(w, active)


def mix_rows(w: csr_array, x: Tensor, out: Tensor | None = None) -> Tensor:
    """``W x`` for a stack ``x [n, ...]``, in the stack's own type and on its device.

    Args:
        w: mixing matrix ``[n, n]``.
        x: the stack; stays as it is.
        out: contiguous memory like ``x`` for the result; new memory by default, whose first touch can cost more than
            the mixing.
    """
    n, flat = len(x), x.reshape(len(x), -1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    mixed = out.view(n, -1)
    rows, columns = (CHUNK_BYTES // (length * flat.element_size()) for length in reversed(flat.shape))
    if w.nnz <= FEW * n and rows >= 8:
        for start in range(0, n, rows):
            mixed[start : start + rows] = _weighted_sums(w[start : start + rows], flat)
    else:
        columns = max(16, columns)
        for start in range(0, flat.shape[1], columns):
            mixed[:, start : start + columns] = _weighted_sums(w, flat[:, start : start + columns])
    return out


def _weighted_sums(w: csr_array, x: Tensor) -> Tensor:
    """``W x`` of a matrix ``W [m, n]`` with few entries and ``x [n, c]``."""
    index, offsets = (torch.from_numpy(a.astype(np.int64)).to(x.device) for a in (w.indices, w.indptr[:-1]))
    weights = torch.from_numpy(w.data).to(x)
    return torch.nn.functional.embedding_bag(index, x, offsets, mode="sum", per_sample_weights=weights)


def restrict(w: csr_array, active: np.ndarray) -> csr_array:
    """W among the nodes ``active`` only, ``[len(active)] * 2``: what a node would have sent to those who are away it
    keeps.

    Symmetric doubly stochastic matrices stay so; of other matrices the columns keep their sums, and so the mass that
    push-sum spreads. A node that has nobody left to speak to keeps every bit.
    """
    if len(active) == w.shape[0]:
        return w
    inner = csr_array(w[active][:, active])
    own = inner.diagonal()
    links = csr_array(inner - diags_array(own))
    links.eliminate_zeros()
    own += np.asarray(w[:, active].sum(0)) - np.asarray(inner.sum(0))   # what each would have sent to absent ones
    alone = np.bincount(links.indices, minlength=len(active)) == 0
    own[alone & (abs(own - 1) < TOLERANCE)] = 1.0          # which a sum of weights may miss by a bit
    return csr_array(links + diags_array(own))


def check(w: csr_array, round: int, *, symmetric: bool = False, rows: bool = True) -> None:
    """Raise ConfigError unless W is non-negative, its columns sum to 1, and (unless told otherwise) its rows do.

    Args:
        w: mixing matrix of the round.
        round: for the message.
        symmetric: whether the method needs W = W^T.
        rows: whether the rows must sum to 1 as well; push-sum does without.
    """
    if w.data.size and w.data.min() < 0:
        raise ConfigError(f"the mixing matrix of round {round} has the weight {w.data.min():g}; expected 0 or more")
    for what, axis, needed in (("column", 0, True), ("row", 1, rows)):
        sums = np.asarray(w.sum(axis))
        worst = int(np.abs(sums - 1).argmax())
        if needed and not abs(sums[worst] - 1) <= TOLERANCE:  # NaN is not
            fix = (
                "use Metropolis weights; a directed graph needs everybody in every round, or push-sum, as SGP does"
                if rows
                else "divide each column by its sum"
            )
            raise ConfigError(
                f"{what} {worst} of the mixing matrix of round {round} sums to {sums[worst]:.6g}, expected 1; {fix}"
            )
    if symmetric and abs(w - w.T).max() > TOLERANCE:
        raise ConfigError(
            f"the mixing matrix of round {round} is not symmetric, which this method needs; use an undirected graph,"
            " or a method that does without: DFedAvg, DFedSAM or GradientTracking where W is doubly stochastic, SGP on"
            " any directed graph"
        )


def spread(x: Tensor) -> float:
    """Root mean square distance of the rows of ``x [n, ...]`` to their mean: the consensus distance."""
    return float((x - x.mean(0)).reshape(len(x), -1).square().sum(1).mean().sqrt())
