"""Messages of a cohort that are added up as clients finish: a mean needs sums of subtrees, not every vector in memory.

A mean by the weights of the clients has the bits of `fedsim.messages.stacked.Stacked`, whatever the blocks, and whoever
finishes first. Whoever asks for the messages themselves gets them too, as client functions can run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.messages.promised import Promised
from fedsim.messages.stacked import Stacked, join_means, mean_of_parts, partial_means
from fedsim.messages.upload import upload
from fedsim.messages.wire import nbytes, paper_bits
from fedsim.tree import leaves, tree_map


class Part(NamedTuple):
    """What is kept of the messages of one block.

    Attributes:
        sums: see ``fedsim.messages.stacked.partial_means``.
        sizes, paper_bits: of each message ``[b]``, or of all.
        total: the sum of all numbers, which is finite if they are, 0-dim.
    """

    sums: Any
    sizes: Any
    paper_bits: Any
    total: Tensor


class Summed(Promised):
    """Messages as sums; themselves, they are promised.

    Args:
        w: ``[c]`` weights of the mean, on the CPU.
        order: ``[c]`` positions in the order of execution.
        device: of the messages.
        again: runs the clients once more, for the messages themselves.
    """

    def __init__(self, w: Tensor, order: Sequence[int], device: torch.device, again: Callable[[], Stacked]) -> None:
        super().__init__(np.zeros(len(w), np.int64), again)
        self._w, self._bits = w, np.zeros(len(w), np.int64)
        (self._in_order,) = upload([w.numpy()[order]], device)
        self._totals: list[Tensor] = []
        self._sums: Any = None

    def __len__(self) -> int:
        return len(self._w)

    def part(self, block: Any, start: int) -> Part:
        """What is kept of a block of messages ``[b, ...]`` that begins at ``start`` in the order of execution."""
        floating = [rows.sum().double() for rows in leaves(block) if rows.is_floating_point()]
        w = self._in_order[start : start + len(leaves(block)[0])]
        total = torch.stack(floating).sum() if floating else w.sum()
        return Part(partial_means(block, w, start), nbytes(block, stacked=True), paper_bits(block, stacked=True), total)

    def put(self, part: Part, positions: Sequence[int]) -> None:
        """Add a block, whose clients are at some positions among the ids."""
        self._sizes[positions], self._bits[positions] = part.sizes, part.paper_bits
        self._totals.append(part.total)
        self._sums = part.sums if self._sums is None else join_means(self._sums, part.sums)

    def paper_bits(self) -> np.ndarray:
        """See ``Messages``."""
        return self._bits

    def finite(self) -> np.ndarray:
        """See ``Messages``."""
        if bool(torch.isfinite(torch.stack(self._totals)).all()):
            return np.ones(len(self), bool)
        return self._here.finite()                         # rarely: whose they are

    def mean(self, w: Tensor) -> Any:
        """See ``Messages``."""
        if not torch.equal(w, self._w):
            return super().mean(w)
        return tree_map(Tensor.clone, mean_of_parts([self._sums], len(self)))
