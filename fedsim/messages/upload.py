"""Arrays of the host on the device that computes, in one copy; and how much that takes at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GPU_BYTES = 2**30
"""Bytes that a GPU processes at a time: each piece costs launches."""

ALIGNMENT = 16
"""Bytes; an array in the buffer begins at a multiple of it, as kernels like it."""


def bytes_at_a_time(device: torch.device, cache: int) -> int:
    """Bytes to process at a time: ``cache`` on a CPU, to fit in its cache; far more on a GPU."""
    return cache if device.type == "cpu" else GPU_BYTES


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on ``device``; on a CPU they share the memory of arrays that may be written.

    On a GPU they are parts of one buffer, copied from pinned memory: the host does not wait for the copy, as it would
    for each array that it copies from its own memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]
    starts = np.cumsum([0, *(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays)]).tolist()
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    room = pinned.numpy()
    for array, start in zip(arrays, starts, strict=False):
        room[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = pinned.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


def upload_groups(groups: Sequence[Sequence[np.ndarray]], device: torch.device) -> list[list[Tensor]]:
    """`upload` of groups of arrays, all in one copy."""
    there = iter(upload([array for group in groups for array in group], device))
    return [[next(there) for _ in group] for group in groups]
