"""Gradient accumulation: a minibatch in several passes, whose shares of its samples sum to 1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from fedsim.seeds import split
from fedsim.tree import count, mapped
from fedsim.types import Batch

STREAM = 2**32
"""Keys of passes are numbered from here on, apart from those of dropout and augmentation."""


def micro_batches(batch: Batch, size: int, axis: int) -> Iterator[tuple[Batch, Tensor | float]]:
    """Parts of ``size`` samples along ``axis``, each with a key of its own and its share of the samples.

    The share is ``[c, 1]`` where there is padding; a part that is padding alone has share 0.
    """
    n = count(batch.y, axis)
    total = None if batch.weight is None else batch.weight.sum(axis, keepdim=True)
    for i, start in enumerate(range(0, n, size)):
        length = min(size, n - start)
        part: Batch = mapped(partial(torch.narrow, dim=axis, start=start, length=length), batch)
        if part.key is not None:
            part = part._replace(key=split(part.key, torch.tensor(STREAM + i, device=part.key.device)))
        if part.weight is None or total is None:
            yield part, length / n
            continue
        own = part.weight.sum(axis, keepdim=True)
        yield part._replace(weight=torch.where(own > 0, part.weight, 1)), own / total
