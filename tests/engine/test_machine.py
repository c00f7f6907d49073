"""Memory of the process: freed tensors stay for the next ones, but for vectors that are large; what is left, and errors
that nothing is.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from fedsim import Local
from fedsim.clients import cohort
from fedsim.engine import machine
from fedsim.engine.blocks import Blocks
from fedsim.engine.machine import CGROUPS, free_memory, out_of_memory
from tests.test_clients import X, federation

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")


def printed(*lines: str) -> list[float]:
    """Numbers that a fresh process prints: what this one has freed would do for large tensors as well."""
    command = "\n".join((
        "import psutil, threading, torch",
        "from fedsim.engine.machine import LARGE, keep_freed_memory, large_apart",
        "def used(): return psutil.Process().memory_info().rss / LARGE",
        *lines,
    ))  # fmt: skip
    alone = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    done = subprocess.run([sys.executable, "-c", command], env=alone, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


@glibc
@pytest.mark.process
def test_large_tensors_go_back_to_the_system_where_vectors_are_large() -> None:
    """If they do not fit into memory that was freed before. In units of ``LARGE``."""
    kept, apart, *others = printed(
        "def freed(size):",
        "    tensor = torch.ones(size // 4)",
        "    before = used()",
        "    del tensor",
        "    return before - used()",
        "assert keep_freed_memory()",
        "print(freed(2 * LARGE))",
        "large_apart(LARGE)",
        "print(freed(16 * LARGE))",
        "for size in (LARGE - 1, 0):",
        "    large_apart(size)",
        "    print(freed(2 * LARGE))",
    )
    assert kept < 1 and apart > 15
    assert len(others) == 2 and max(others) < 1


@glibc
@pytest.mark.process
def test_what_one_thread_frees_another_has() -> None:
    """Each with a heap of its own would keep its own 200 MiB."""
    (kept,) = printed(
        "keep_freed_memory()",
        "def work(): [torch.ones(LARGE // 8) for _ in range(8)]",
        "before = used()",
        "for _ in range(4):",
        "    thread = threading.Thread(target=work)",
        "    thread.start()",
        "    thread.join()",
        "print(used() - before)",
    )
    assert kept < 6


CPU = torch.device("cpu")


@pytest.mark.parametrize("version", [0, 1])
def test_a_container_has_what_is_below_its_limit(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, limit, used, files = CGROUPS[version]
    monkeypatch.setattr(machine, "CGROUPS", [(str(tmp_path), limit, used, files)])
    available = psutil.virtual_memory().available
    assert free_memory(CPU) > 0.5 * available, "no such files"
    (tmp_path / limit).write_text("9000000\n")
    (tmp_path / used).write_text("8000000\n")
    (tmp_path / "memory.stat").write_text(f"anon 6000000\n{files} 500000\n")
    assert free_memory(CPU) == 1_500_000
    (tmp_path / used).write_text("9600000\n")
    assert free_memory(CPU) == 0
    (tmp_path / limit).write_text("max\n")
    assert free_memory(CPU) > 0.5 * available


def test_who_has_no_memory_is_told_from_other_errors() -> None:
    for ask in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        outer = ValueError("a model raised it")
        outer.__cause__ = caught.value
        assert out_of_memory(caught.value) and out_of_memory(outer)
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied")) and not out_of_memory(None)


def greedy(local: Local, x: Tensor) -> Tensor:
    return x + torch.empty(2**50)[0]


def test_a_block_that_does_not_fit_is_not_taken_for_code_that_cannot_run_in_one() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        cohort(federation(backend=Blocks(2)), 1).each(greedy, X)
