"""Mixing a stack in a file: the bits of mixing in memory, within a budget of memory that the stack exceeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from fedsim.errors import ConfigError, RunError
from fedsim.messages.mixing import mix_rows
from fedsim.messages.outofcore import COPIES, mix_stored
from topologies import BarabasiAlbert, Exponential, GraphBuilder, Torus, metropolis


def w_of(graph: GraphBuilder, n: int) -> csr_array:
    return metropolis(graph.build(n, 0))


def stored(path: Path, values: np.ndarray) -> np.memmap:
    """The values in a file, after a header of somebody else's."""
    stack = np.memmap(path, values.dtype, "w+", 17, values.shape)
    stack[:] = values
    return stack


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 7, 33, 1000])
@pytest.mark.parametrize("graph", [Torus(), Exponential(), BarabasiAlbert(2)], ids=lambda g: type(g).__name__)
def test_the_bits_are_those_of_mixing_in_memory(
    tmp_path: Path, graph: GraphBuilder, columns: int, dtype: Any, steps: int
) -> None:
    n, d = 144, 100
    w, x = w_of(graph, n), np.random.default_rng(0).standard_normal((n, d)).astype(dtype)
    mixed = torch.from_numpy(x)
    for _ in range(steps):
        mixed = mix_rows(w, mixed)
    expected = mixed.numpy()
    budget = COPIES * n * columns * x.itemsize
    rows, chunks = stored(tmp_path / "rows", x), stored(tmp_path / "chunks", x.reshape(n, 4, 25).transpose(1, 0, 2))
    mix_stored(w, rows, steps, budget)
    mix_stored(w, chunks, steps, budget)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(chunks.transpose(1, 0, 2).reshape(n, d), expected)
    assert np.abs(expected - x).max() > 0.1


PEAK = """
import json, re, sys
from pathlib import Path
import numpy as np, torch
from fedsim.messages.mixing import mix_rows
from fedsim.messages.outofcore import mix_stored
from topologies import Torus, metropolis

def peak():  # of this process alone: psutil has no peak on Linux, and ru_maxrss begins with that of its starter
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
path, shape, budget = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
w = metropolis(Torus().build(shape[-2], 0))
mix_rows(w, torch.zeros(shape[-2], 8))
before = peak()
mix_stored(w, np.memmap(path, np.float32, "r+", shape=tuple(shape)), 2, budget)
print(peak() - before)
"""


@pytest.mark.parametrize("shape", [[1024, 65536], [4, 1024, 16384]], ids=["rows", "chunks"])
@pytest.mark.process
def test_a_stack_larger_than_the_budget_stays_on_disk(tmp_path: Path, shape: list[int]) -> None:
    """256 MiB in a file, 32 MiB to work with: by how much the process grows, as the system measures it."""
    path, budget = tmp_path / "stack", 32 * 2**20
    stack = np.memmap(path, np.float32, "w+", shape=tuple(shape))
    stack[:] = np.random.default_rng(0).random(shape, np.float32)
    mean = stack.mean(axis=-2, dtype=np.float64)
    arguments = [str(path), json.dumps(shape), str(budget)]
    grown = int(subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, check=True).stdout)
    assert stack.nbytes == 8 * budget and budget / 2 < grown < stack.nbytes / 2
    np.testing.assert_allclose(stack.mean(axis=-2, dtype=np.float64), mean, rtol=0, atol=1e-6)


def test_what_cannot_be_mixed(tmp_path: Path) -> None:
    w, stack = w_of(Torus(), 9), stored(tmp_path / "stack", np.zeros((9, 5), np.float32))
    with pytest.raises(ConfigError, match=r"budget is 71 bytes; a column of 9 nodes needs 72: raise it"):
        mix_stored(w, stack, budget=71)
    for other in (stored(tmp_path / "other", np.zeros((8, 5))), stored(tmp_path / "long", np.zeros(9))):
        with pytest.raises(ConfigError, match=rf"the stack is \[{other.shape[0]}.*; expected \[9, d\] or \[m, 9, c\]"):
            mix_stored(w, other)
    with pytest.raises(ConfigError, match=r"opened with mode 'r'; .* mode 'r\+'"):
        mix_stored(w, np.memmap(tmp_path / "stack", np.float32, "r", shape=(9, 5)))
    os.truncate(tmp_path / "stack", 100)
    with pytest.raises(RunError, match=r"cannot mix .*stack': the file is shorter than the stack"):
        mix_stored(w, stack)
