"""Rows of a stack mixed by a sparse matrix W, ``x_i <- sum_j w_ij x_j``, without ever forming n x n.

A row is the weighted sum of its neighbours' rows in the order of their numbers, whichever rows are mixed together. Some
nodes are done at a time where nodes have few neighbours, else some columns at a time, as many as fit the processor's
cache, so that a row that is fetched for one neighbour is still there for the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsim.messages.sums import weighted_sum

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CHUNK_BYTES = 4 * 2**20
"""Bytes of the stack that are mixed at a time."""


FEW = 5
"""Mean number of weights in a row of W up to which fetching neighbours' rows again costs less than copying columns."""


def mix_rows(w: csr_array, x: Tensor, out: Tensor | None = None) -> Tensor:
    """``W x`` for a stack ``x [n, ...]``, in the stack's own type and on its device.

    Args:
        w: mixing matrix ``[n, n]``, or some of its rows.
        x: the stack; stays as it is.
        out: contiguous memory for the result; new memory by default, whose first touch can cost more than the mixing.
    """
    n, flat = w.shape[0], x.reshape(len(x), -1)
    out = x.new_empty(n, *x.shape[1:]) if out is None else out
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


def spread(x: Tensor, order: Tensor | None = None) -> float:
    """Root mean square distance of the rows of ``x [n, ...]`` to their mean: the consensus distance.

    ``order [n]`` is that of execution, in which the mean is summed.
    """
    center = weighted_sum(x, torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device), order)
    return root_mean(squared_distances(x, center))


def squared_distances(x: Tensor, center: Tensor) -> Tensor:
    """Squared distances of the rows of ``x [n, ...]`` to ``center``, ``[n]``; each a sum of its own, so that its bits
    do not depend on the rows beside it.
    """
    return torch.stack([(row - center).square().sum() for row in x])


def root_mean(squares: Tensor) -> float:
    """Square root of the mean of ``squares [n]``."""
    return float(squares.mean().sqrt())
