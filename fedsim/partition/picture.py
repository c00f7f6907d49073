"""A partition as a picture."""

from __future__ import annotations

import os
import textwrap

import numpy as np

from fedsim.errors import many
from fedsim.partition.card import label_counts, summary
from fedsim.partition.partition import Partition
from fedsim.record import figures
from fedsim.record.owned_picture import draw_owned


def plot(partition: Partition, labels: np.ndarray, classes: int, path: str | os.PathLike[str]) -> None:
    """Draw who owns what: up to 100 clients one by one, more as histograms of sizes and of label skew.

    Args:
        partition: of the data set whose labels are given.
        labels: ``[N]`` class labels in 0..classes-1; with targets of another kind only the sizes are drawn.
        classes: number of classes; 0 where targets are not classes.
        path: file to write; ``.png``, ``.svg`` or ``.pdf`` gives the format.
    """
    format = figures.kind_of(os.fspath(path))
    counts = label_counts(partition, labels, classes)
    whole = None if counts is None else np.bincount(labels, minlength=classes)
    samples = f"{many(partition.n, 'client')}, {many(len(partition.indices), 'sample')}"
    title = f"{textwrap.fill(summary(partition.scheme), 100)}\n{samples}"
    figures.save(draw_owned(partition.sizes, counts, whole, title), os.fspath(path), format)
