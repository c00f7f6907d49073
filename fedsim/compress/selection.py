"""Exact selection of the k largest magnitudes: larger |x_i| first, then lower index.

On the CPU a long vector is filtered by a threshold from a sample that about 1.2 k entries exceed, and the few survivors
are partitioned; if fewer than k survive, the whole vector is partitioned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.compress.stacks import on_stacks

LONG = 2**13
"""Vectors of this length are worth a sample; shorter ones are sorted, which works below ``torch.vmap`` as it is."""
SAMPLE = 2**16
SHARE = 16
"""Least entries of a vector for each one in its sample: the partition of a larger sample costs more than it saves."""
BLOCK = 2**16
"""Numbers filtered at a time, so that they stay in the processor's cache."""


def largest(x: Tensor, k: int) -> Tensor:
    """Ascending indices ``[..., k]``, int64, of the ``k`` largest magnitudes of ``x [..., d]``; NaN is largest."""
    d = x.shape[-1]
    if k == d:
        return torch.arange(k, device=x.device).expand(*x.shape[:-1], k)
    if d < LONG:
        return _by_sorting(x, k)
    return on_stacks(lambda x: (_of_long(x, k),), x)[0]


def _by_sorting(x: Tensor, k: int) -> Tensor:
    return x.abs().sort(dim=-1, descending=True, stable=True).indices[..., :k].sort(-1).values


def _of_long(x: Tensor, k: int) -> Tensor:
    if x.device.type != "cpu":
        return _by_threshold(x, k)
    rows = x.detach().reshape(-1, x.shape[-1])
    found = [_by_sample(row, k) for row in rows]
    return torch.stack(found).view(*x.shape[:-1], k)


def _by_threshold(x: Tensor, k: int) -> Tensor:
    """By the k-th magnitude: those above it, and as many of those equal to it as there is room for."""
    size = x.abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    least = size.topk(k, -1).values[..., -1:]
    above, equal = size > least, size == least
    room = k - above.sum(-1, keepdim=True)
    keep = above | (equal & (equal.cumsum(-1) <= room))
    return keep.nonzero()[:, -1].view(*x.shape[:-1], k)


def _by_sample(vector: Tensor, k: int) -> Tensor:
    """The same, for one long vector."""
    if not torch.isfinite(vector.sum()):
        return _by_sorting(vector, k)
    x = vector.numpy()
    index, size = _exceeding(x, _threshold(x, k))
    if len(index) < k:
        index, size = np.arange(len(x)), np.abs(x)
    least = np.partition(size, len(size) - k)[len(size) - k]
    keep = size > least
    equal = np.flatnonzero(size == least)
    keep[equal[: k - np.count_nonzero(keep)]] = True
    return torch.from_numpy(index[keep])


def _threshold(x: np.ndarray, k: int) -> float:
    """A threshold that about 1.2 k magnitudes exceed, estimated from a sample; rarely fewer than k."""
    step = max(SHARE, len(x) // SAMPLE)
    sample = np.abs(x[step // 2 :: step])
    expected = len(sample) * k / len(x)
    rank = min(len(sample), int(1.2 * expected + 4 * expected**0.5) + 4)
    return float(np.partition(sample, len(sample) - rank)[len(sample) - rank])


def _exceeding(x: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices and magnitudes of the entries that reach the threshold."""
    buffer = np.empty(BLOCK, x.dtype)
    found, sizes = [], []
    for start in range(0, len(x), BLOCK):
        size = np.abs(x[start : start + BLOCK], out=buffer[: min(BLOCK, len(x) - start)])
        here = np.flatnonzero(size >= threshold)
        found.append(here + start)
        sizes.append(size[here])
    return np.concatenate(found), np.concatenate(sizes)
