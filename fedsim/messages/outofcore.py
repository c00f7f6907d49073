"""Out-of-core gossip: a stack of models in a file is mixed in place, some columns at a time.

Columns are independent in ``X <- W X``, so only a few columns of all rows are in memory at a time, and there is no
second stack. In a matrix ``[n, d]`` they are n pieces of the file; in chunks ``[m, n, c]``, with the columns of a chunk
contiguous, they are one piece, which a disk reads and writes at full speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.sparse import csr_array

from fedsim.errors import ConfigError, RunError
from fedsim.messages.mixing import mix_rows

COPIES = 2
"""Copies of the current columns: as read, and as mixed."""


def mix_stored(w: csr_array, stack: np.memmap, steps: int = 1, budget: int = 2**28) -> None:
    """Replace a stack in a file by ``W^steps`` times the stack, bit for bit as `mix_rows` in memory.

    The file is read and written, not mapped, as mapped pages count as memory of the process. A process that is killed
    leaves some columns mixed and others not: work on a copy if that matters.

    Args:
        w: mixing matrix ``[n, n]``.
        stack: ``[n, d]``, or in chunks of columns ``[m, n, c]``; opened for writing (mode ``r+`` or ``w+``).
        steps: number of exchanges, made in one pass over the file.
        budget: bytes of memory for the columns mixed at a time, excluding an overhead of some tens of megabytes.

    Raises:
        ConfigError: W and the stack differ in the number of nodes, the file is open for reading only, or the budget
            is too small for one column.
        RunError: the file cannot be read or written.
    """
    n, column = w.shape[0], COPIES * w.shape[0] * stack.itemsize
    if stack.ndim not in (2, 3) or stack.shape[-2] != n or stack.mode == "r" or stack.filename is None:
        raise ConfigError(
            f"the stack is {list(stack.shape)}, opened with mode {stack.mode!r}; expected [{n}, d] or [m, {n}, c] for W"
            f" of {n} nodes, and mode 'r+'"
        )
    if budget < column:
        raise ConfigError(f"budget is {budget:,} bytes; a column of {n:,} nodes needs {column:,}: raise it")
    columns = min(budget // column, stack.shape[-1])
    memory = np.empty((COPIES, n * columns), stack.dtype)  # reused for every block
    stack.flush()
    file = os.open(stack.filename, os.O_RDWR)
    try:
        for pieces, shape in _blocks(stack, columns):
            block, other = (part[: shape[0] * shape[1]].reshape(shape) for part in memory)
            _transfer(os.preadv, file, block, pieces)
            for _ in range(steps):
                mix_rows(w, torch.from_numpy(block), torch.from_numpy(other))
                block, other = other, block
            _transfer(os.pwritev, file, block, pieces)
    except OSError as error:
        raise RunError(f"cannot mix {os.fspath(stack.filename)!r}: {error.strerror}; some columns are mixed") from error
    finally:
        os.close(file)


def _blocks(stack: np.memmap, columns: int) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """File offsets of the pieces of each block of ``columns`` columns, and the shape of the block."""
    (n, c), size = stack.shape[-2:], stack.itemsize
    for chunk in range(stack.size // (n * c)):
        for start in range(0, c, columns):
            rows = [0] if columns >= c else range(n)       # a whole chunk is one piece
            pieces = [stack.offset + ((chunk * n + row) * c + start) * size for row in rows]
            yield pieces, (n, min(columns, c - start))


def _transfer(call: Callable[..., int], file: int, block: np.ndarray, pieces: list[int]) -> None:
    """Read or write the pieces of a block, which are contiguous in memory."""
    data = block.reshape(-1).view(np.uint8).data
    size = len(data) // len(pieces)
    for k, at in enumerate(pieces):
        done = 0
        while done < size:
            moved = call(file, [data[k * size + done : (k + 1) * size]], at + done)
            if not moved:
                raise OSError(0, "the file is shorter than the stack")
            done += moved
