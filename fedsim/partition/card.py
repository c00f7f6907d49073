"""The heterogeneity card: a partition in numbers.

Label skew is the Jensen-Shannon distance (Lin 1991; square root of the divergence, base 2) between a client's label
distribution and that of the whole data set: 0 is IID, 1 has no class in common. Size skew is the Gini coefficient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from fedsim.errors import DataError, many
from fedsim.partition.partition import Partition
from fedsim.record.owned import js_distance


@dataclass(frozen=True)
class Card:
    """A partition in numbers; the label statistics are None where samples have no class (text, regression).

    Attributes:
        n: number of clients.
        total: number of samples that clients own, a sample counted once for each time it is used.
        dataset: number of samples of the data set.
        used: number of different samples that are used.
        repeated: number of samples that are used more than once.
        sizes: samples per client: ``min``, ``mean``, ``median``, ``max``, and ``gini`` (0 equal, near 1 one owns all).
        classes_per_client: ``min``, ``mean``, ``max`` over the clients that own samples.
        js: Jensen-Shannon distance to the whole data set, 0 to 1: ``min``, ``mean``, ``max`` over those clients.
        js_per_client: the same for every client, None for an empty one.
        hash: of the partition.
        scheme: of the partition.
    """

    n: int
    total: int
    dataset: int
    used: int
    repeated: int
    sizes: Mapping[str, float]
    classes_per_client: Mapping[str, float] | None
    js: Mapping[str, float] | None
    js_per_client: tuple[float | None, ...] | None
    hash: str
    scheme: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """The card as JSON-able values."""
        return dataclasses.asdict(self)


def gini(sizes: np.ndarray) -> float:
    """Gini coefficient of ``sizes [n]``, 0 (all equal) to 1 - 1/n (one client owns everything)."""
    n = len(sizes)
    rank = np.arange(1, n + 1)
    return float(((2 * rank - n - 1) * np.sort(sizes)).sum() / (n * max(1, sizes.sum())))


CLIENTS = 2**14
"""Clients whose samples are counted at a time."""


def label_counts(partition: Partition, labels: np.ndarray, classes: int) -> np.ndarray | None:
    """``[n, classes]`` samples of each class at each client; None where samples have no class."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iub" or not classes:
        return None
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"labels lie in {labels.min()}..{labels.max()} but should be 0..{classes - 1}: check classes")
    counts = np.zeros((partition.n, classes), np.int64)
    for first in range(0, partition.n, CLIENTS):
        ends = partition.offsets[first : first + CLIENTS + 1]
        cell = np.repeat(np.arange(len(ends) - 1) * classes, np.diff(ends))
        cell += labels[partition.indices[ends[0] : ends[-1]]].astype(np.int64, copy=False)
        counts[first : first + CLIENTS] = np.bincount(cell, minlength=(len(ends) - 1) * classes).reshape(-1, classes)
    return counts


def spread(values: np.ndarray) -> dict[str, float]:
    """Smallest, mean and largest value; zeros where there are none."""
    values = values if len(values) else np.zeros(1)
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def card(partition: Partition, labels: np.ndarray, classes: int) -> Card:
    """Measure a partition.

    Args:
        partition: of the data set whose labels are given.
        labels: ``[N]`` class labels in 0..classes-1; targets of another kind have no label statistics.
        classes: number of classes; 0 where targets are not classes.
    """
    sizes = partition.sizes
    uses = np.bincount(partition.indices, minlength=len(labels))
    counts = label_counts(partition, labels, classes)
    per_client = js = js_per_client = None
    if counts is not None:
        distance = js_distance(counts, np.bincount(labels, minlength=classes))
        per_client = spread((counts > 0).sum(axis=1)[sizes > 0])
        js = spread(distance[sizes > 0])
        js_per_client = tuple(float(d) if size else None for d, size in zip(distance, sizes, strict=True))
    return Card(
        n=partition.n,
        total=int(sizes.sum()),
        dataset=len(labels),
        used=int((uses > 0).sum()),
        repeated=int((uses > 1).sum()),
        sizes={**spread(sizes), "median": float(np.median(sizes)), "gini": gini(sizes)},
        classes_per_client=per_client,
        js=js,
        js_per_client=js_per_client,
        hash=partition.hash,
        scheme=dict(partition.scheme),
    )


def summary(scheme: Mapping[str, object]) -> str:
    """A scheme in one line: name, then its parameters; long lists are cut."""
    words = []
    for name, value in scheme.items():
        text = str(value)
        words.append(text if name == "name" else f"{name}={text if len(text) <= 24 else text[:20] + ' ...'}")
    return f"{words[0]}({', '.join(words[1:])})" if words else "partition"


def render(card: Card) -> Table:
    """The card as a table for the terminal."""
    table = Table("quantity", "min", "mean", "max", title=summary(card.scheme), title_justify="left", min_width=76)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {"samples per client": card.sizes, "classes per client": card.classes_per_client, "JS distance": card.js}
    for name, values in rows.items():
        if values is not None:
            digits = ".3f" if name == "JS distance" else ",.1f"
            table.add_row(name, *(format(values[key], digits) for key in ("min", "mean", "max")))
    used = f"{card.used:,} of {card.dataset:,} samples used, {card.repeated:,} of them more than once"
    table.caption = f"{many(card.n, 'client')}; {used}; Gini of sizes {card.sizes['gini']:.3f}; hash {card.hash[:12]}"
    table.caption_justify = "left"
    return table
