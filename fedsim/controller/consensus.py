"""The average of the models of some nodes, and how far they are from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.types import Kept
from fedsim.values import Vector

STACK = 2**22
"""Numbers of models that are stacked at a time."""


def center(
    x: Kept[Vector], ids: Sequence[int], weights: np.ndarray, total: float
) -> tuple[Vector, Sequence[float]]:
    """Weighted mean of the models of some nodes, and their squared distances to it."""
    average = torch.zeros_like(x[ids[0]])
    for i, weight in zip(ids, weights.tolist(), strict=True):   # one at a time: they may be remote
        average += x[i] * weight / total
    return average, [float((x[i] - average).square().sum()) for i in ids]


def center_of_many(
    x: Kept[Vector], ids: Sequence[int], weights: np.ndarray, total: float
) -> tuple[Vector, Sequence[float]]:
    """As `center`, for many nodes with small models: by stacks."""
    first = x[ids[0]]
    step, shares = max(1, STACK // first.numel()), weights / total
    spans = [slice(start, start + step) for start in range(0, len(ids), step)]
    average, squares = torch.zeros_like(first), list[float]()
    for span in spans:
        rows = x.stacking(ids[span])()
        average += (torch.from_numpy(shares[span]).to(rows) @ rows.flatten(1)).view_as(first)
    for span in spans:
        rows = x.stacking(ids[span])()
        squares += (rows - average).square_().flatten(1).sum(1).tolist()
    return average, squares
