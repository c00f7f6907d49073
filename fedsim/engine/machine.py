"""This machine: its processors and the threads on them, and the C library's allocator, told to keep what a run frees.

A local step makes and frees tensors of the same few megabytes again and again. By default glibc hands each of them back
to the operating system and asks for fresh, zeroed pages at the next step, which can cost more than the arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # as in glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Make freed memory stay with this process, up to 2 GiB of it; False where that is not possible: without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20, M_MMAP_MAX: 0}
    return all(libc.mallopt(name, value) for name, value in settings.items())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1   # macOS: all


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """While this lasts, PyTorch computes an operation with so many threads; with as many as before when None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
