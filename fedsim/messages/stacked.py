"""Messages of a cohort, and their aggregation, as one stack of tensors in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.messages.mixing import mix_rows, spread
from fedsim.messages.sums import Subtree, combine, join, partial_sums, weighted_partial_sums, weighted_sum
from fedsim.messages.upload import bytes_at_a_time, upload
from fedsim.messages.wire import nbytes, paper_bits
from fedsim.tree import StackedRows, leaves, rebuilt, tree_map, unpacked
from fedsim.values import Packed

if TYPE_CHECKING:
    from scipy.sparse import csr_array

UNPACKED_NUMBERS = 2**22
"""Numbers unpacked at a time on a CPU when compressed messages are summed."""


@dataclass(frozen=True)
class Stacked:
    """Messages in this process.

    Attributes:
        tree: the messages, every tensor ``[c, ...]``.
        order: ``[c]`` positions in the order of execution; None if that is the order of the ids.
    """

    tree: Any
    order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(leaves(self.tree)[0])

    def sizes(self) -> np.ndarray:
        """See ``Messages``."""
        return np.broadcast_to(nbytes(self.tree, stacked=True), len(self))

    def paper_bits(self) -> np.ndarray:
        """See ``Messages``."""
        return np.broadcast_to(paper_bits(self.tree, stacked=True), len(self))

    def finite(self) -> np.ndarray:
        """See ``Messages``."""
        good = np.ones(len(self), bool)
        floating = [rows for rows in leaves(self.tree) if rows.is_floating_point()]
        if floating and not bool(torch.isfinite(torch.stack([rows.sum().double() for rows in floating])).all()):
            for rows in floating:                          # rarely: check row by row
                good &= torch.isfinite(rows.reshape(len(self), -1)).all(1).cpu().numpy()
        return good

    def stacked(self) -> Any:
        """See ``Messages``."""
        return self.tree

    def only(self, positions: np.ndarray) -> Stacked:
        """See ``Messages``."""
        order = None
        if self.order is not None:                         # as of a cohort of only these
            rank = np.full(len(self), -1)
            rank[positions] = np.arange(len(positions))
            order = rank[self.order][rank[self.order] >= 0]
        rows = torch.from_numpy(positions)
        return Stacked(tree_map(lambda t: t[rows.to(t.device)], self.tree), order)

    def mean(self, w: Tensor) -> Any:
        """See ``Messages``."""
        device = leaves(self.tree)[0].device
        there = upload([w.numpy()] if self.order is None else [w.numpy(), self.order], device)
        return _mean(self.tree, there[0], None if self.order is None else there[1])

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[Mapping[int, Any], float | None]:
        """See ``Messages``."""
        refuse_packed(self.tree, steps)
        mixed = unpacked(self.tree)
        order = None
        if measure and self.order is not None:
            (order,) = upload([self.order], leaves(mixed)[0].device)
        before = spread(leaves(mixed)[0], order) if measure else 0.0
        for _ in range(steps):
            mixed = tree_map(lambda x: mix_rows(w, x), mixed)
        contraction = spread(leaves(mixed)[0], order) / before if before else None
        return StackedRows(np.arange(len(self)), mixed), contraction


def refuse_packed(tree: Any, steps: int) -> None:
    """Raise ConfigError if compressed messages would be exchanged more than once."""
    if steps > 1 and _is_packed(tree):
        raise ConfigError(f"{steps} gossip steps of a compressed message: only the first is compressed; use 1")


def _is_packed(tree: Any) -> bool:
    return isinstance(tree, Packed) or (isinstance(tree, tuple) and any(map(_is_packed, tree)))


def _mean(tree: Any, w: Tensor, order: Tensor | None) -> Any:
    """Weighted sums of the stacks of a tree; compressed vectors are unpacked."""
    if isinstance(tree, Tensor):
        return weighted_sum(tree, w, order)
    if isinstance(tree, Packed):
        return _mean_unpacked(tree, w, order)
    return rebuilt(tree, [_mean(branch, w, order) for branch in tree])


def _mean_unpacked(packed: Packed, w: Tensor, order: Tensor | None) -> Tensor:
    """Weighted sum of the unpacked stack, which is never in memory as a whole."""
    return combine(_unpacked_sums(packed, w, order, 0), len(w))


def _unpacked_sums(packed: Packed, w: Tensor, order: Tensor | None, start: int) -> dict[Subtree, Tensor]:
    run = max(1, bytes_at_a_time(packed.parts[0].device, 4 * UNPACKED_NUMBERS) // (4 * max(1, packed.d)))
    sums: dict[Subtree, Tensor] = {}
    for at in range(0, len(w), run):
        where: Any = slice(at, at + run) if order is None else order[at : at + run]
        rows = Packed(packed.by, tuple(part[where] for part in packed.parts), packed.d).unpack()
        some = partial_sums(rows * w[where].to(rows.dtype).unsqueeze(1), start + at)
        join(sums, {key: total.clone() for key, total in some.items()} if len(rows) > 1 else some)
    return sums


def partial_means(tree: Any, w: Tensor, start: int) -> Any:
    """Contribution of the messages at positions ``start``, ... to the weighted mean of all: the tree with, for every
    vector, its sums over subtrees (``fedsim.messages.sums``).
    """
    if isinstance(tree, Tensor):
        return weighted_partial_sums(tree, w, start)
    if isinstance(tree, Packed):
        return _unpacked_sums(tree, w, None, start)
    return rebuilt(tree, [partial_means(branch, w, start) for branch in tree])


def join_means(sums: Any, more: Any) -> Any:
    """`partial_means` of some messages and of others, in which sibling subtrees are one; changes ``sums``."""
    if isinstance(sums, dict):
        join(sums, more)
        return sums
    return rebuilt(sums, [join_means(*branches) for branches in zip(sums, more, strict=True)])


def mean_of_parts(parts: Sequence[Any], c: int) -> Any:
    """Mean of ``c`` messages from the `partial_means` that cover them."""
    first = parts[0]
    if isinstance(first, dict):
        return combine({key: total for sums in parts for key, total in sums.items()}, c)
    return rebuilt(first, [mean_of_parts(branches, c) for branches in zip(*parts, strict=True)])
