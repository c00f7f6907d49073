"""Gossip among models that do not fit in memory: a stack in a file is mixed in place, some columns at a time.

Columns do not depend on each other in ``X <- W X``, so no more than a few columns of all rows are ever in memory, and
there is no second stack. In a matrix ``[n, d]`` they are n pieces of the file; in chunks ``[m, n, c]``, the columns of
one chunk next to each other, they are one piece, which a disk reads and writes at its full speed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array

from fedsim.errors import ConfigError
from fedsim.gossip import mix_rows

COPIES = 3
"""Of the columns at hand: as read, as mixed, and the pages of the file."""


def mix_stored(w: csr_array, stack: np.memmap, steps: int = 1, budget: int = 2**28) -> None:
    """Replace a stack in a file by ``W^steps`` times it, with the bits that `fedsim.gossip.mix_rows` gives in memory.

    A process that is killed leaves some columns mixed and the others not: work on a copy where that matters.

    Args:
        w: mixing matrix ``[n, n]``.
        stack: ``[n, d]``, or in chunks of columns ``[m, n, c]``; opened for writing (mode ``r+`` or ``w+``).
        steps: number of exchanges, made in one pass over the file.
        budget: bytes of memory to use, which decides how many columns are mixed at a time.

    Raises:
        ConfigError: W and the stack are of different nodes, the file is open for reading only, or not even one column
            fits in the budget.
    """
    n = w.shape[0]
    if stack.ndim not in (2, 3) or stack.shape[-2] != n or stack.mode == "r":
        raise ConfigError(
            f"the stack is {list(stack.shape)}, opened with mode {stack.mode!r}; expected [{n}, d] or [m, {n}, c] for W"
            f" of {n} nodes, and mode 'r+'"
        )
    columns = budget // (COPIES * n * stack.itemsize)
    if columns < 1:
        raise ConfigError(
            f"budget is {budget:,} bytes; a column of {n:,} nodes needs {COPIES * n * stack.itemsize:,}: raise it"
        )
    stack.flush()
    assert stack.filename is not None                      # that of a file without a name
    for where in _blocks(stack.shape, columns):
        mapped = np.memmap(stack.filename, stack.dtype, "r+", stack.offset, stack.shape)   # whose pages go with it
        block = torch.from_numpy(np.array(mapped[where]))
        for _ in range(steps):
            block = mix_rows(w, block)
        mapped[where] = block.numpy()


def _blocks(shape: tuple[int, ...], columns: int) -> Iterator[tuple[int | slice, ...]]:
    """Where the blocks of so many columns lie."""
    for chunk in range(shape[0]) if len(shape) == 3 else [None]:
        for start in range(0, shape[-1], columns):
            block: tuple[int | slice, ...] = (slice(None), slice(start, start + columns))
            yield block if chunk is None else (chunk, *block)
