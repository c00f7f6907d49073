"""Mixing of the rows of a stack by a sparse matrix W, ``x_i <- sum_j w_ij x_j``, without forming n x n.

A row is the weighted sum of its neighbours' rows in the order of their ids, regardless of the rows mixed with it. The
stack is processed in blocks that, on a CPU, fit in the cache, so that a row fetched for one neighbour is still there
for the next: blocks of nodes if these have few neighbours, else blocks of columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fedsim.messages.sums import weighted_sum
from fedsim.messages.upload import bytes_at_a_time, upload

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CHUNK_BYTES = 4 * 2**20
"""Bytes of the stack mixed at a time on a CPU."""


MANY = 10_000
"""Rows up to which the bits of distances do not depend on where rows are."""
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
    at_a_time = bytes_at_a_time(x.device, CHUNK_BYTES)
    rows, columns = (at_a_time // (length * flat.element_size()) for length in reversed(flat.shape))
    if w.nnz <= FEW * n and rows >= 8:
        for start in range(0, n, rows):
            mixed[start : start + rows] = _Weights(w[start : start + rows], x).times(flat)
    else:
        columns, weights = max(16, columns), _Weights(w, x)
        for start in range(0, flat.shape[1], columns):
            mixed[:, start : start + columns] = weights.times(flat[:, start : start + columns])
    return out


class _Weights:
    """A sparse matrix ``W [m, n]`` on the device, and of the type, of ``like``."""

    def __init__(self, w: csr_array, like: Tensor) -> None:
        host = [w.indices.astype(np.int64), w.indptr[:-1].astype(np.int64), w.data]
        self._index, self._offsets, self._data = upload(host, like.device)
        self._data = self._data.to(like)

    def times(self, x: Tensor) -> Tensor:
        """Product ``W x`` with ``x [n, c]``."""
        return embedding_bag(self._index, x, self._offsets, mode="sum", per_sample_weights=self._data)


def spread(x: Tensor, order: Tensor | None = None) -> float:
    """Consensus distance: root mean square distance of the rows of ``x [n, ...]`` to their mean.

    The mean is summed in the order of execution, ``order [n]``.
    """
    center = weighted_sum(x, torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device), order)
    return root_mean(squared_distances(x, center))


def squared_distances(x: Tensor, center: Tensor) -> Tensor:
    """Squared distances of the rows of ``x [n, ...]`` to ``center``, ``[n]``; of up to 10,000 rows each is summed
    separately, so that its bits do not depend on the other rows.
    """
    if len(x) > MANY:
        step = max(1, CHUNK_BYTES // max(1, center.nbytes))
        parts = (x[start : start + step] for start in range(0, len(x), step))
        return torch.cat([(rows - center).square_().flatten(1).sum(1) for rows in parts])
    return torch.stack([(row - center).square().sum() for row in x])


def root_mean(squares: Tensor) -> float:
    """Square root of the mean of ``squares [n]``."""
    return float(squares.mean().sqrt())
