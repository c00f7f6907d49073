"""Memory of the process: freed tensors stay for the next ones, but for vectors that are large."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from fedsim.engine.machine import LARGE, keep_freed_memory, large_apart

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")


def freed(size: int) -> int:
    """Bytes that go back to the system when a tensor of so many is freed."""
    tensor, resident = torch.ones(size // 4), psutil.Process().memory_info
    before = resident().rss
    del tensor
    return before - int(resident().rss)


@glibc
def test_large_tensors_go_back_to_the_system_where_vectors_are_large() -> None:
    """If they do not fit into memory that was freed before."""
    assert keep_freed_memory()
    assert freed(2 * LARGE) < LARGE
    with large_apart(LARGE):
        assert freed(16 * LARGE) > 15 * LARGE
    with large_apart(LARGE - 1):
        assert freed(2 * LARGE) < LARGE
    assert freed(2 * LARGE) < LARGE
