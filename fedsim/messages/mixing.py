"""Mixing of the rows of a stack by a sparse matrix W, ``x_i <- sum_j w_ij x_j``, without forming n x n.

A row is the weighted sum of its neighbours' rows in the order of their ids, regardless of the rows mixed with it. The
stack is processed in blocks that fit in the processor's cache, so that a row fetched for one neighbour is still there
for the next: blocks of nodes if these have few neighbours, else blocks of columns.
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
"""Bytes of the stack mixed at a time."""


FEW = 5
"""Mean number of weights per row of W up to which refetching neighbours' rows costs less than copying columns."""


def mix_rows(w: csr_array, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Product ``W x`` for a stack ``x [n, ...]``, in its type and on its device.

    Args:
        w: mixing matrix ``[n, n]``, or some of its rows.
        x: the stack; not modified.
        out: contiguous memory for the result; by default new, whose first access can cost more than the mixing.
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
    """Product ``W x`` of a sparse matrix ``W [m, n]`` and ``x [n, c]``."""
    index, offsets = (torch.from_numpy(a.astype(np.int64)).to(x.device) for a in (w.indices, w.indptr[:-1]))
    weights = torch.from_numpy(w.data).to(x)
    return torch.nn.functional.embedding_bag(index, x, offsets, mode="sum", per_sample_weights=weights)


def spread(x: Tensor, order: Tensor | None = None) -> float:
    """Consensus distance: root mean square distance of the rows of ``x [n, ...]`` to their mean.

    The mean is summed in the order of execution, ``order [n]``.
    """
    center = weighted_sum(x, torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device), order)
    return root_mean(squared_distances(x, center))


def squared_distances(x: Tensor, center: Tensor) -> Tensor:
    """Squared distances of the rows of ``x [n, ...]`` to ``center``, ``[n]``; each is summed separately, so that
    its bits do not depend on the other rows.
    """
    return torch.stack([(row - center).square().sum() for row in x])


def root_mean(squares: Tensor) -> float:
    """Square root of the mean of ``squares [n]``."""
    return float(squares.mean().sqrt())
