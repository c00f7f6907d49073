"""Gossip: rows of a stack mixed by a sparse matrix W, ``x_i <- sum_j w_ij x_j``, without ever forming n x n.

Few nodes take one dense product. Many take a weighted sum of neighbours' rows over chunks of columns that fit the
processor's cache, so that a row fetched for one neighbour is still there for the next.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from fedsim.errors import ConfigError

DENSE_NODES = 128
"""Up to here a dense product is faster than gathering neighbours."""
CHUNK_BYTES = 4 * 2**20
"""Bytes of the stack that are mixed at a time."""
TOLERANCE = 1e-8
"""Largest deviation of a row or column sum from 1."""


class Topology(Protocol):
    """Who talks to whom in a round, and with which weights."""

    def matrix(self, round: int, seed: int, n: int) -> csr_array:
        """Mixing matrix W ``[n, n]`` of a round; ``w_ij`` weighs what i hears from j."""


def mixing_matrix(topology: Topology, round: int, seed: int, active: np.ndarray, n: int) -> csr_array:
    """W of a round among the nodes ``active`` of ``n``, in their order.

    Raises:
        ConfigError: the topology cannot be had with so many nodes.
    """
    try:
        return restrict(topology.matrix(round, seed, n), active)
    except ValueError as error:
        raise ConfigError(f"topology: {error}") from error


def mix_rows(w: csr_array, x: Tensor) -> Tensor:
    """``W x`` for a stack ``x [n, ...]``, in the stack's own type and on its device."""
    flat = x.reshape(len(x), -1)
    if len(x) <= DENSE_NODES:
        return (torch.from_numpy(w.toarray()).to(flat) @ flat).view(x.shape)
    index = torch.from_numpy(w.indices.astype(np.int64)).to(x.device)
    offsets = torch.from_numpy(w.indptr[:-1].astype(np.int64)).to(x.device)
    weights = torch.from_numpy(w.data).to(flat)
    out = torch.empty_like(flat)
    step = max(16, CHUNK_BYTES // (len(x) * flat.element_size()))
    for start in range(0, flat.shape[1], step):
        columns = flat[:, start : start + step].contiguous()
        out[:, start : start + step] = torch.nn.functional.embedding_bag(
            index, columns, offsets, mode="sum", per_sample_weights=weights
        )
    return out.view(x.shape)


def restrict(w: csr_array, active: np.ndarray) -> csr_array:
    """W among the nodes ``active`` only, ``[len(active)] * 2``: weight on a link to an absent node goes to the
    diagonal.

    Symmetric and doubly stochastic matrices stay so. Of a column-stochastic matrix the columns keep their sums.
    """
    if len(active) == w.shape[0]:
        return w
    inner = csr_array(w[active][:, active])
    lost = np.asarray(w[:, active].sum(0)) - np.asarray(inner.sum(0))   # what each would have sent to absent ones
    return csr_array(inner + diags_array(lost))


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
        if needed and abs(sums[worst] - 1) > TOLERANCE:
            fix = "use Metropolis weights" if rows else "divide each column by its sum"
            raise ConfigError(
                f"{what} {worst} of the mixing matrix of round {round} sums to {sums[worst]:.6g}, expected 1; {fix},"
                " or for a directed"
                " graph a push-sum method such as SGP"
            )
    if symmetric and abs(w - w.T).max() > TOLERANCE:
        raise ConfigError(
            f"the mixing matrix of round {round} is not symmetric, which this method needs; use an undirected graph,"
            " or a method that does"
            " without: DFedAvg, DFedSAM or GradientTracking where W is doubly stochastic, SGP on any directed graph"
        )


def spread(x: Tensor) -> float:
    """Root mean square distance of the rows of ``x [n, d]`` to their mean: the consensus distance."""
    return float((x - x.mean(0)).square().sum(1).mean().sqrt())
