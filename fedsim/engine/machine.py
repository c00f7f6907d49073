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
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from fedsim.errors import ConfigError, many

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8  # as in glibc's malloc.h

LARGE = 2**25
"""Bytes of a tensor from which on it can have memory of its own: glibc's greatest limit."""
MOST_SHARED = 8
"""Threads or processes for each processor; more only compete for memory."""
MANY = 2**16
"""Such tensors at a time: more than there are."""
CGROUPS = [("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
           ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
"""A container's memory in versions 2 and 1 of Linux's control groups: the folder, the files of its limit and of what it
uses, and the line of memory.stat with that part which holds files and can be had at once.
"""


@functools.cache
def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory in this process; return False if that is not possible, without glibc.

    What one thread has freed is there for the others, as far as they have not allocated before, when glibc fixes the
    number of heaps: each with a heap of its own would keep as much again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = {
        M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20, M_MMAP_THRESHOLD: LARGE, M_MMAP_MAX: 0, M_ARENA_MAX: 1,
    }  # fmt: skip
    return all(libc.mallopt(name, value) for name, value in settings.items())


_apart = False                                             # of the process, as glibc's settings are


def large_apart(size: int) -> None:
    """Where vectors have as many bytes as `LARGE`, large tensors from here on have memory of their own, which goes back
    to the system when they are freed: between others they leave gaps that nothing fits. For local steps in place, as it
    takes time to get the memory; a size of 0 ends it.

    Args:
        size: bytes of a vector.
    """
    global _apart
    if (size >= LARGE) != _apart and keep_freed_memory():
        _apart = not _apart
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, MANY if _apart else 0)


def cores() -> int:
    """Number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1   # macOS: all


def check_count(setting: str, count: int | None) -> None:
    """Refuse numbers of threads or processes that are not meant for this machine.

    Raises:
        ConfigError: more than `MOST_SHARED` for each processor.
    """
    if count is not None and count > MOST_SHARED * cores():
        has = many(cores(), "processor")
        raise ConfigError(
            f"{setting} is {count:,}, and this machine has {has}, on which more than {MOST_SHARED * cores()} would only"
            f" compete for memory; expected about {cores()}, or leave it out"
        )


def free_memory(device: torch.device) -> int:
    """Bytes of memory that can still be had on a device; for the CPU without swapping, within a container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, *(_left(*group) for group in CGROUPS))


def _left(folder: str, limit: str, used: str, files: str) -> int:
    """Bytes that a control group has left."""
    try:
        most, now = (int(Path(folder, name).read_text()) for name in (limit, used))
        parts = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
    except (OSError, ValueError):                          # no such group, or no limit: in version 2 the word max
        return sys.maxsize
    return max(most - now + int(parts.get(files, 0)), 0)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that a device or this machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return True
    return error is not None and out_of_memory(error.__cause__)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set PyTorch's number of intra-operation threads in this context; None leaves it unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
