"""Sums whose bits do not depend on the division of work: a pairwise tree over the positions of the rows.

Rows 0 and 1 are added, rows 2 and 3, ...; then these sums in pairs, and so on; a last one without partner moves up
unchanged. A worker that holds consecutive rows sums the complete subtrees among them (``partial_sums``), about
2 log2(c) vectors for any number of rows. Combined, they have the bits of one pass over all rows (``combine``). Pairwise
sums are also more accurate than sums from left to right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torch import Tensor

from fedsim.messages.upload import bytes_at_a_time

CHUNK_BYTES = 2**20
"""Bytes of weighted rows summed at a time on a CPU, to fit in its cache."""

Subtree: TypeAlias = tuple[int, int]
"""(level, index): the sum of rows ``index * 2^level`` up to, not including, ``(index + 1) * 2^level``."""


def tree_sum(rows: Tensor) -> Tensor:
    """Sum ``[...]`` of ``rows [c, ...]``, c >= 1; overwrites ``rows``."""
    step = 1
    while step < len(rows):
        right = rows[step :: 2 * step]
        rows[0 :: 2 * step][: len(right)].add_(right)
        step *= 2
    return rows[0]


def weighted_sum(rows: Tensor, w: Tensor, order: Tensor | None = None) -> Tensor:
    """``sum_i w_i rows_i`` as a tree over the positions ``order`` (those of the rows by default).

    Args:
        rows: ``[c, ...]``; integers are summed as float64.
        w: ``[c]`` weights of the rows.
        order: ``[c]`` index of the row at each position.
    """
    rows = rows if rows.is_floating_point() else rows.double()
    out = rows.new_empty(rows[0].numel())
    for columns, weighted in _weighted(rows, w, order):
        out[columns] = tree_sum(weighted)
    return out.view(rows.shape[1:])


def _weighted(rows: Tensor, w: Tensor, order: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``w_i rows_i`` by blocks of columns, in new memory, in the order of the positions."""
    flat, w = rows.reshape(len(rows), -1), w.to(rows.dtype).unsqueeze(1)
    w = w if order is None else w[order]
    width = max(16, bytes_at_a_time(rows.device, CHUNK_BYTES) // (len(rows) * rows.element_size()))
    for start in range(0, flat.shape[1], width):
        columns = slice(start, start + width)
        yield columns, (flat[:, columns] if order is None else flat[:, columns][order]) * w


def partial_sums(rows: Tensor, start: int) -> dict[Subtree, Tensor]:
    """Sums of the largest complete subtrees among ``rows [b, ...]`` at positions ``start``, ...

    The rows are already weighted, and are overwritten.
    """
    sums, stop = {}, start + len(rows)
    at = start
    while at < stop:
        level = 0
        while at % 2 ** (level + 1) == 0 and at + 2 ** (level + 1) <= stop:
            level += 1
        sums[level, at >> level] = tree_sum(rows[at - start : at - start + 2**level])
        at += 2**level
    return sums


def weighted_partial_sums(rows: Tensor, w: Tensor, start: int) -> dict[Subtree, Tensor]:
    """``partial_sums`` of ``w_i rows_i`` for rows ``[b, ...]``, which are not modified; see ``weighted_sum``."""
    rows = rows if rows.is_floating_point() else rows.double()
    sums: dict[Subtree, Tensor] = {}
    for columns, weighted in _weighted(rows, w, None):
        for key, part in partial_sums(weighted, start).items():
            sums.setdefault(key, rows.new_empty(rows[0].numel()))[columns] = part
    return {key: total.view(rows.shape[1:]) for key, total in sums.items()}


def join(sums: dict[Subtree, Tensor], more: Mapping[Subtree, Tensor]) -> None:
    """Add sums of other subtrees to ``sums``; sibling subtrees are merged."""
    for (level, index), total in more.items():
        while (level, index ^ 1) in sums:
            other = sums.pop((level, index ^ 1))
            total = other + total if index & 1 else total + other
            level, index = level + 1, index >> 1
        sums[level, index] = total


def combine(sums: Mapping[Subtree, Tensor], c: int) -> Tensor:
    """Sum of all ``c`` rows from sums of subtrees that cover each row once."""

    def subtree(level: int, index: int) -> Tensor:
        if (level, index) in sums:
            return sums[level, index]
        left, right = 2 * index, 2 * index + 1
        both = subtree(level - 1, left)
        return both + subtree(level - 1, right) if right << (level - 1) < c else both

    return subtree((c - 1).bit_length(), 0)
