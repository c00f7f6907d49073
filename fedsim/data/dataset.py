"""Data sets: two splits of tensors, and the natural owner of each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import DataError


class Split(NamedTuple):
    """Samples of one split.

    Attributes:
        x: inputs ``[N, ...]``; float32 features or images, int64 token ids for text.
        y: targets ``[N]`` int64 class labels, ``[N, T]`` int64 next tokens, or ``[N]`` float32 for regression.
        client: ``[N]`` int64 natural owner of each sample (writer, subject, role, hospital), or None.
    """

    x: Tensor
    y: Tensor
    client: np.ndarray | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The samples on ``device``; floating-point inputs and targets in ``dtype``, whole numbers as they are."""
        x, y = (part.to(device, dtype if part.is_floating_point() else part.dtype) for part in (self.x, self.y))
        return Split(x, y, self.client)


@dataclass(frozen=True)
class Dataset:
    """A named data set.

    Attributes:
        name: the loader's name of it.
        train: samples that clients train on.
        test: samples that no client trains on.
        classes: number of classes (vocabulary size for text, 0 for regression).
        client_names: name of natural client ``k`` at position ``k``; None without natural clients.
        label_names: name of class ``k`` at position ``k``; None when labels are just numbers.
        notes: facts for the reader of a result, such as samples that differ from the published files.
        feature_names: name of feature ``j`` of ``x`` at position ``j``, where the file names them.
        target_name: name of the target's column, where the file names it.
    """

    name: str
    train: Split
    test: Split
    classes: int
    client_names: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    notes: str = ""
    feature_names: tuple[str, ...] | None = None
    target_name: str | None = None

    def __post_init__(self) -> None:
        for kind, split in (("train", self.train), ("test", self.test)):
            if not isinstance(split, Split):
                raise DataError(
                    f"data set {self.name!r}, {kind} is a {type(split).__name__}; expected a Split(x, y) of tensors: of"
                    " a TensorDataset, Split(*dataset.tensors), of another dataset of PyTorch, Split(torch.stack([x for"
                    " x, _ in dataset]), torch.tensor([y for _, y in dataset]))"
                )
            _check(f"data set {self.name!r}, {kind}", split, self.classes)
        if not len(self.train.y):
            raise DataError(f"data set {self.name!r}, train: there are no samples; expected one at least")
        shapes = [split.x.shape[1:] for split in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"data set {self.name!r}: training inputs have shape {list(shapes[0])}, test inputs {list(shapes[1])}; "
                "expected the same"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.train.x.shape[1:])


def _check(where: str, split: Split, classes: int) -> None:
    """One target of a possible value for every input, and all inputs finite."""
    for name, value in (("x", split.x), ("y", split.y)):
        if not isinstance(value, Tensor):
            raise DataError(f"{where}: {name} is a {type(value).__name__}; expected a tensor: torch.as_tensor({name})")
    x, y, client = split
    if len(x) != len(y) or (client is not None and len(client) != len(y)):
        owners = "" if client is None else f" and {len(client)} clients"
        raise DataError(f"{where}: {len(x)} inputs, {len(y)} targets{owners}; expected as many of each")
    if 0 in x.shape[1:]:
        raise DataError(f"{where}: inputs of shape {list(x.shape[1:])} hold no number; expected at least one feature")
    if x.is_floating_point() and not x.sum(dtype=torch.float64).isfinite():   # a sum is finite only if all numbers are
        raise DataError(f"{where}: an input is NaN or infinite; expected finite numbers")
    if classes and (y.is_floating_point() or y.is_complex()):
        raise DataError(f"{where}: targets of {classes} classes are {y.dtype}; expected int64, or classes=0 to regress")
    if classes and y.dtype != torch.int64:
        raise DataError(f"{where}: targets are {y.dtype}; expected int64: y.long()")
    if classes and len(y) and not 0 <= int(y.min()) <= int(y.max()) < max(classes, 2):   # one class: a binary logit
        raise DataError(f"{where}: targets from {y.min()} to {y.max()}; expected 0 to {max(classes, 2) - 1}")
