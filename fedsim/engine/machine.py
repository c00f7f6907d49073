"""This machine: processors, threads, and the allocator of the C library, configured to keep freed memory.

A local step allocates and frees tensors of the same few megabytes again and again. By default glibc returns each of
them to the operating system and requests fresh, zeroed pages in the next step, which can cost more than the arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Iterator

import psutil
import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # as in glibc's malloc.h

LARGE = 2**25
"""Bytes of a tensor from which on it can have memory of its own: glibc's greatest limit."""
MANY = 2**16
"""Such tensors at a time: more than there are."""


@functools.cache
def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory in this process; return False if that is not possible, without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20, M_MMAP_THRESHOLD: LARGE, M_MMAP_MAX: 0}
    return all(libc.mallopt(name, value) for name, value in settings.items())


@contextlib.contextmanager
def large_apart(size: int) -> Iterator[None]:
    """Where vectors have as many bytes as `LARGE`, large tensors of this context have memory of their own, which goes
    back to the system when they are freed: between others they leave gaps that nothing fits. For local steps in place:
    it takes time to get the memory.

    Args:
        size: bytes of a vector.
    """
    if size < LARGE or not keep_freed_memory():
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, MANY)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, 0)


def cores() -> int:
    """Number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1   # macOS: all


def free_memory(device: torch.device) -> int:
    """Bytes of memory that can still be had on a device, for the CPU without swapping."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set PyTorch's number of intra-operation threads in this context; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
