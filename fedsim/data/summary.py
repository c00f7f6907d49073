"""A one-line summary of a user's files as they were read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.tree import flat, written

SHOWN = 5
"""Names listed of each kind."""


def summary(data: Dataset, path: object) -> str:
    """Samples, features, targets and clients of a data set, and its notes."""
    parts = [f"{len(data.train.y):,} training and {len(data.test.y):,} test samples", _inputs(data), _targets(data)]
    parts.append(_count("client", data.client_names) if data.client_names else "no natural clients")
    if data.classes and data.label_names and data.train.y.dim() == 1:
        unseen = [data.label_names[k] for k in np.setdiff1d(data.test.y, data.train.y)]
        if unseen:
            parts.append(f"in the test samples alone: {_first(unseen)}")
    return "; ".join([f"{data.name} {path}: {', '.join(parts)}", *([data.notes] if data.notes else [])])


def _inputs(data: Dataset) -> str:
    if data.feature_names:
        return _count("feature", data.feature_names)
    x = flat(data.train.x)[0]
    kind = "real numbers" if x.is_floating_point() else "pixels" if data.train.pixels else "whole numbers (tokens)"
    return f"inputs {written(data.train.x)} of {kind}"


def _targets(data: Dataset) -> str:
    y = data.train.y
    if not data.classes:
        return f"real targets from {y.min():g} to {y.max():g}"
    if y.dim() > 1:
        return f"a vocabulary of {data.classes}"
    return _count("class", data.label_names or [str(k) for k in range(data.classes)])


def _count(noun: str, names: Sequence[str]) -> str:
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{len(names):,} {noun if len(names) == 1 else plural} ({_first(names)})"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= SHOWN else f"{', '.join(names[: SHOWN - 1])}, ..., {names[-1]}"
