"""Samples of the clients: sorted by client, distorted by a skew, with some held out. Large data is not copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.data import Dataset, Split
from fedsim.data.by_client import ClientSource
from fedsim.data.dataset import PIECE, brightness
from fedsim.engine.local_work import Shards
from fedsim.engine.scattered import Scattered
from fedsim.engine.sourced import Sourced, withheld
from fedsim.errors import ConfigError, PartitionError, explained
from fedsim.experiment.experiment import Experiment
from fedsim.partition import Partition, Skew
from fedsim.robust.attack import Attack
from fedsim.tree import Samples, count, flat, joined, mapped, shapes, written

COPIED = 2**27
"""Bytes of training samples up to which they are copied, sorted by client, which lets a client's be read as a view."""


class _Part(NamedTuple):
    """Rows ``[M]`` of the data sorted by client, None for all of them, and the first one of each client."""

    rows: np.ndarray | None
    offsets: np.ndarray


def place(
    experiment: Experiment,
    data: Dataset,
    partition: Partition,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    ends: Sequence[int],
) -> list[tuple[Shards, Shards]]:
    """Samples that clients train on, and samples on which they are evaluated: the same, or held-out ones.

    They share the memory of the data set where possible.

    Args:
        ends: one after the last client of each group of clients. Groups are placed separately.

    Raises:
        ConfigError: a client would have no held-out samples.
        PartitionError: a client has no samples, or a skew changes the shape of its inputs.
    """
    groups = list(pairwise(dict.fromkeys((0, *ends))))
    if data.source is not None:
        return _of_source(data.source, experiment.evaluation.holdout, seed, device, dtype, groups)
    make = _placing(experiment, data.train, partition, seed, device, dtype)
    if not experiment.evaluation.holdout:
        whole = _Part(None, partition.offsets.copy())      # writable, as torch wants arrays
        return [(shards, shards) for group in groups for shards in [make(_only(whole, *group))]]
    keep, withheld = _holdout(partition, experiment.evaluation.holdout, seed)
    return [(make(_only(keep, *group)), make(_only(withheld, *group))) for group in groups]


def seen(n: int, unseen: float) -> int:
    """Number of clients that train, the first ones of ``n``, if a share of them is ``unseen``.

    Raises:
        ConfigError: no client would train, or all would.
    """
    k = n - round(unseen * n)
    if unseen and not 0 < k < n:
        raise ConfigError(f"evaluation.unseen is {unseen}, {n - k} of {n} clients; expected at least one, and not all")
    return k


def _only(part: _Part, first: int, end: int) -> _Part:
    """The rows of some consecutive clients."""
    if end - first == len(part.offsets) - 1:
        return part
    offsets = part.offsets[first : end + 1]
    rows = np.arange(offsets[0], offsets[-1]) if part.rows is None else part.rows[offsets[0] : offsets[-1]]
    return _Part(rows, offsets - offsets[0])


def _of_source(
    source: ClientSource,
    share: float,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    groups: Sequence[tuple[int, int]],
) -> list[tuple[Shards, Shards]]:
    """Shards of clients that are not in memory."""
    if not share:
        return [(shards, shards) for group in groups for shards in [Sourced(source, group, device, dtype)]]
    holdout = _counts_withheld(source.sizes, share), seed
    return [
        (Sourced(source, group, device, dtype, holdout), Sourced(source, group, device, dtype, holdout, True))
        for group in groups
    ]


def _counts_withheld(sizes: np.ndarray, share: float) -> np.ndarray:
    """Numbers of samples ``[n]`` that clients of ``sizes [n]`` withhold; each keeps at least one for training."""
    held: np.ndarray = np.minimum((sizes * share).round().astype(np.int64), np.maximum(sizes - 1, 0))
    if not held.all():
        raise ConfigError(
            f"evaluation.holdout is {share}, which leaves {int((held == 0).sum())} of {len(sizes)} clients without"
            f" held-out samples (the smallest has {sizes.min()}); give every client more samples, or use holdout 0"
        )
    return held


def _holdout(partition: Partition, share: float, seed: int) -> tuple[_Part, _Part]:
    """Training rows and held-out rows of the data sorted by client; every client keeps at least one for training."""
    sizes = partition.sizes
    held = _counts_withheld(sizes, share)
    places = withheld(seed, np.arange(partition.n), sizes, held)
    chosen = np.concatenate([own + start for own, start in zip(places, partition.offsets[:-1], strict=True)])
    mask = np.ones(len(partition.indices), bool)
    mask[chosen] = False
    parts = []
    for rows, counts in ((np.flatnonzero(mask), sizes - held), (chosen, held)):
        parts.append(_Part(rows, np.r_[0, np.cumsum(counts)]))
    return parts[0], parts[1]


def _placing(
    experiment: Experiment, train: Split, partition: Partition, seed: int, device: torch.device, dtype: torch.dtype
) -> Callable[[_Part], Shards]:
    """Function that makes shards from parts of the training samples."""
    order, inputs, targets, pixels = partition.indices, train.x, train.y, train.pixels
    changes = experiment.attack is not None and type(experiment.attack).poison is not Attack.poison   # in place
    if experiment.skew is not None:
        order = np.arange(len(order))
        inputs, targets = mapped(_gather(partition.indices), (inputs, targets))
        inputs = _distorted(experiment.skew, brightness(inputs, dtype) if pixels else inputs, partition, seed)
        pixels = False
    size = sum(t.nbytes for t in flat((inputs, targets))) * (dtype.itemsize if pixels else 1)

    def place(part: _Part) -> Shards:
        rows = order if part.rows is None else order[part.rows]
        shared = not changes and _consecutive(rows)
        if size > COPIED and device.type == "cpu" and not changes and (pixels or not shared):
            return Scattered(inputs, targets, rows, part.offsets, dtype, pixels)
        take = itemgetter(slice(rows[0], rows[-1] + 1)) if shared else _gather(rows)
        x, y = mapped(take, (inputs, targets))
        x, y, *_ = Split(x, y, None, pixels).to(device, dtype)
        return Shards(x, y, part.offsets)

    return place


def _consecutive(rows: np.ndarray) -> bool:
    if not len(rows) or rows[-1] - rows[0] != len(rows) - 1:
        return False
    starts = range(0, len(rows), PIECE)
    return all(bool((np.diff(rows[start : start + PIECE + 1]) == 1).all()) for start in starts)


def _gather(rows: np.ndarray) -> Callable[[Tensor], Tensor]:
    index = torch.from_numpy(rows.copy())                  # torch needs a writable array
    return lambda t: t[index]


def _distorted(skew: Skew, inputs: Samples, partition: Partition, seed: int) -> Samples:
    """Training inputs sorted by client, with each client's skew applied."""
    parts, skewed = (mapped(itemgetter(slice(*rows)), inputs) for rows in pairwise(partition.offsets.tolist())), []
    for i, part in enumerate(parts):
        with explained(f"{type(skew).__name__}.apply"):
            skewed.append(skew.apply(part, i, partition.n, seed))
        if shapes(skewed[i]) != shapes(part) or count(skewed[i]) != count(part):
            raise PartitionError(
                f"{type(skew).__name__}.apply returned {count(skewed[i])} inputs of shape"
                f" {written(skewed[i])}; expected as it was given, {count(part)} of shape {written(part)}"
            )
    return joined(skewed, partition.sizes.tolist())
