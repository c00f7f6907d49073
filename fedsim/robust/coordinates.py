"""Coordinate-wise rules.

- Median, trimmed mean: Yin, Chen, Ramchandran, Bartlett, ICML 2018 (arXiv 1803.01498).
- Means of the values nearest to them: Xie, Koyejo, Gupta, 2018 (MeaMed, arXiv 1802.10116; Phocas, arXiv 1805.09682).

Values are sorted by a network of minima and maxima over blocks of columns (Batcher's odd-even merge), on all columns of
a block at a time: the same code on CPU and GPU, without a second stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.robust.rule import Occasion, RobustRule
from fedsim.robust.stack import RowStack
from fedsim.values import Vector


@dataclass(frozen=True)
class CoordinateMedian(RobustRule):
    """Coordinate-wise median; for an even number of rows the mean of the two middle values (NumPy's, not PyTorch's)."""

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return by_coordinate(stack, median)


@dataclass(frozen=True)
class TrimmedMean(RobustRule):
    """Coordinate-wise mean without the f largest and the f smallest values.

    Args:
        f: Byzantine rows; n >= 2 f + 1.
    """

    f: int = 1
    needs = (2, 1)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return by_coordinate(stack, lambda rows: trimmed(rows, self.f))


@dataclass(frozen=True)
class MeaMed(RobustRule):
    """Mean around the median: coordinate-wise mean of the n - f values nearest to the median.

    Args:
        f: Byzantine rows; n >= 2 f + 1.
    """

    f: int = 1
    needs = (2, 1)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return by_coordinate(stack, lambda rows: nearest(rows, median(rows), len(rows) - self.f))


@dataclass(frozen=True)
class Phocas(RobustRule):
    """Coordinate-wise mean of the n - f values nearest to the trimmed mean.

    Args:
        f: Byzantine rows; n >= 2 f + 1.
    """

    f: int = 1
    needs = (2, 1)

    def aggregate(self, stack: RowStack, weights: Tensor, at: Occasion) -> Vector:
        """See ``RobustRule``."""
        return by_coordinate(stack, lambda rows: nearest(rows, trimmed(rows, self.f), len(rows) - self.f))


def by_coordinate(
    stack: RowStack, fn: Callable[[list[Tensor]], Tensor], chosen: list[int] | None = None
) -> Vector:
    """Apply ``fn`` to the values of every coordinate in ascending order, rows ``[w]``; of the rows ``chosen`` only."""
    out = stack.rows.new_empty(stack.rows.shape[1])
    for columns, part in stack.columns():
        out[columns] = fn(ascending(part if chosen is None else part[chosen]))
    return out


def ascending(block: Tensor) -> list[Tensor]:
    """Sort the columns of ``block [n, w]``, which is overwritten; return the sorted rows."""
    rows, spare = list(block.unbind()), torch.empty_like(block[0])
    for low, high in network(len(rows)):
        a, b = rows[low], rows[high]
        torch.minimum(a, b, out=spare)
        torch.maximum(a, b, out=b)
        rows[low], spare = spare, a
    return rows


@lru_cache
def network(n: int) -> list[tuple[int, int]]:
    """Comparisons that sort ``n`` values (Batcher, 1968): pairs of positions of the smaller and the larger value."""
    pairs, size = [], 1
    while size < n:
        apart = size
        while apart:
            for start in range(apart % size, n - apart, 2 * apart):
                for low in range(start, min(start + apart, n - apart)):
                    if low // (2 * size) == (low + apart) // (2 * size):
                        pairs.append((low, low + apart))
            apart //= 2
        size *= 2
    return pairs


def median(rows: list[Tensor]) -> Tensor:
    """Median of sorted rows."""
    half = len(rows) // 2
    return rows[half].clone() if len(rows) % 2 else (rows[half - 1] + rows[half]) / 2


def trimmed(rows: list[Tensor], f: int) -> Tensor:
    """Mean of sorted rows without the first and the last ``f``."""
    return mean(rows[f : len(rows) - f])


def mean(rows: list[Tensor]) -> Tensor:
    """Mean of rows."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total / len(rows)


def nearest(rows: list[Tensor], center: Tensor, count: int) -> Tensor:
    """Mean of the ``count`` values nearest to ``center`` in sorted rows; the larger of two that are equally near.

    These are ``count`` consecutive values. As the window moves up, value ``i + count`` takes the place of value ``i``
    while it is nearer, so each place holds one of them. A running sum would lose the values beside one that is large.
    """
    held = rows[:count]
    for i in range(len(rows) - count):
        low, high = rows[i], rows[i + count]
        held[i % count] = torch.where(high - center <= center - low, high, held[i % count])
    return mean(held)
