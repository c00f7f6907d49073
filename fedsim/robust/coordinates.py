"""Coordinate-wise rules.

- Median, trimmed mean: Yin, Chen, Ramchandran, Bartlett, ICML 2018 (arXiv 1803.01498).
- Means of the values nearest to them: Xie, Koyejo, Gupta, 2018 (MeaMed, arXiv 1802.10116; Phocas, arXiv 1805.09682).

The values of a coordinate are sorted side by side in memory, a block of coordinates at a time, so that no second stack
is made: NumPy sorts them in the registers of a CPU that has vectors, several times as fast as PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.robust.rule import Occasion, RobustRule
from fedsim.robust.stack import RowStack
from fedsim.values import Vector

CACHED = 2**12
"""Columns that are sorted at a time on a CPU: with their transpose they stay in its cache. PyTorch transposes what is
contiguous by tiles, twice as fast."""


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
        return by_coordinate(stack, lambda values: trimmed(values, self.f))


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
        return by_coordinate(stack, lambda values: nearest(values, median(values), self.f))


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
        return by_coordinate(stack, lambda values: nearest(values, trimmed(values, self.f), self.f))


def by_coordinate(stack: RowStack, fn: Callable[[Tensor], Tensor], chosen: list[int] | None = None) -> Vector:
    """Apply ``fn`` to the values of every coordinate in ascending order, ``[w, n]``; of the rows ``chosen`` only."""
    out = stack.rows.new_empty(stack.rows.shape[1])
    width = CACHED if out.device.type == "cpu" else len(out)

    def fill(columns: slice) -> None:
        for start in range(columns.start, min(columns.stop, len(out)), width):
            part = slice(start, min(start + width, columns.stop))
            out[part] = fn(ascending(stack.transposed(part, chosen)))

    stack.each_block(fill)
    return out


def ascending(values: Tensor) -> Tensor:
    """``values [w, n]`` with each row sorted; on a CPU in place."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.sort(1).values
    values.numpy().sort(1)
    return values


def median(values: Tensor) -> Tensor:
    """Median of sorted values ``[w, n]``."""
    half = values.shape[1] // 2
    return values[:, half] if values.shape[1] % 2 else (values[:, half - 1] + values[:, half]) / 2


def trimmed(values: Tensor, f: int) -> Tensor:
    """Mean of sorted values ``[w, n]`` without the first and the last ``f``."""
    return values[:, f : values.shape[1] - f].mean(1)


def nearest(values: Tensor, center: Tensor, f: int) -> Tensor:
    """Mean of sorted values ``[w, n]`` without the ``f`` furthest from ``center [w]``; of two that are equally near it
    keeps the larger.

    These are ``n - f`` consecutive values. As the window moves up, value ``i + n - f`` takes the place of value ``i``
    while it is nearer, so each place holds one of them. A running sum would lose the values beside one that is large.
    """
    count = values.shape[1] - f
    held = low = values[:, : min(f, count)].T.contiguous()   # the places that change
    for start in range(count, count + f, count):
        high = values[:, start : start + count].T.contiguous()
        places = held[: len(high)]
        places.copy_(torch.where(high - center <= center - low[: len(high)], high, places))
        low = high
    return (held.sum(0) + values[:, len(held) : count].sum(1)) / count
