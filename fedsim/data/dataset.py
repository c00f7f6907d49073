"""Data sets: two splits of tensors, and the natural owner of each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import whole
from fedsim.errors import DataError
from fedsim.tree import Samples, count, flat, mapped, pieces, shapes, structure, written

PIECE = 2**22
"""Numbers that are checked at a time, in a copy of twice their size."""


class Split(NamedTuple):
    """Samples of one split.

    Attributes:
        x: inputs ``[N, ...]``; float32 features or images, int64 token ids for text. A dict or tuple of tensors holds
            the arguments of the model, such as token ids and attention mask.
        y: targets ``[N]`` int64 class labels, ``[N, T]`` int64 next tokens, or ``[N]`` float32 for regression. A dict
            or tuple of tensors goes to a loss of your own.
        client: ``[N]`` int64 natural owner of each sample (writer, subject, role, hospital), or None.
        pixels: ``x`` is uint8 and stays so in memory; models get it as real numbers from 0 to 1.
    """

    x: Samples
    y: Samples
    client: np.ndarray | None = None
    pixels: bool = False

    def first(self, k: int) -> Split:
        """The first ``k`` samples."""
        x, y = mapped(itemgetter(slice(k)), (self.x, self.y))
        return self._replace(x=x, y=y, client=None if self.client is None else self.client[:k])

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The samples on ``device``; floating-point inputs and targets, and pixels, in ``dtype``, whole numbers as they
        are.
        """
        given = brightness(self.x, dtype) if self.pixels else self.x
        x, y = mapped(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), (given, self.y))
        return Split(x, y, self.client)


def brightness(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as real numbers from 0 to 1, of float32's precision."""
    return pixels.float().div_(255).to(dtype)


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
        source: of the samples of clients that are not in memory, of which ``train`` is the first one's: see
            ``dataset_by_client``.
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
    source: Any = None

    def __post_init__(self) -> None:
        whole(f"data set {self.name!r}: classes", self.classes, 0, "; 0 is regression")
        for kind, split in (("train", self.train), ("test", self.test)):
            if not isinstance(split, Split):
                raise DataError(
                    f"data set {self.name!r}, {kind} is a {type(split).__name__}; expected a Split(x, y) of tensors: of"
                    " a TensorDataset, Split(*dataset.tensors), of another dataset of PyTorch, Split(torch.stack([x for"
                    " x, _ in dataset]), torch.tensor([y for _, y in dataset]))"
                )
            _check(f"data set {self.name!r}, {kind}", split, self.classes)
        if not count(self.train.y):
            raise DataError(f"data set {self.name!r}, train: there are no samples; expected one at least")
        for what, one, other in (("inputs", self.train.x, self.test.x), ("targets", self.train.y, self.test.y)):
            if (shapes(one) != shapes(other)) if what == "inputs" else (structure(one) != structure(other)):
                raise DataError(
                    f"data set {self.name!r}: training {what} have shape {written(one)}, test {what}"
                    f" {written(other)}; expected the same"
                )

    @property
    def input_shape(self) -> Any:
        """Shape of one input, without the sample axis; a dict or tuple of shapes for such inputs."""
        return shapes(self.train.x)

    @property
    def labels(self) -> np.ndarray:
        """Targets of the training samples, by which partitioners divide; the first tensor of a dict or tuple."""
        labels: np.ndarray = flat(self.train.y)[0].numpy()
        return labels


def _check(where: str, split: Split, classes: int) -> None:
    """One target of a possible value for every input, and all inputs finite."""
    for name, value in (("x", split.x), ("y", split.y)):
        for leaf in flat(value) or [value]:
            _check_tensor(where, name, leaf, within=leaf is not value)
    x, y, client = flat(split.x), flat(split.y), split.client
    n = len(y[0])
    if {len(t) for t in (*x, *y)} != {n} or (client is not None and len(client) != n):
        inputs, targets = ("/".join(str(many) for many in dict.fromkeys(map(len, leaves))) for leaves in (x, y))
        owners = "" if client is None else f" and {len(client)} clients"
        raise DataError(f"{where}: {inputs} inputs, {targets} targets{owners}; expected as many of each")
    for t in x:
        if 0 in t.shape[1:]:
            empty = list(t.shape[1:])
            raise DataError(f"{where}: inputs of shape {empty} hold no number; expected at least one feature")
        if not all(_finite(part) for part in pieces(t, max(1, PIECE // math.prod(t.shape[1:])))):
            for i, sample in enumerate(t):                 # or it is their sum that is beyond the range
                if not sample.isfinite().all():
                    raise DataError(f"{where}: an input of sample {i} is NaN or infinite; expected finite numbers")
    if not all(_finite(t) for t in y):
        raise DataError(f"{where}: a target is NaN or infinite; expected finite numbers")
    if split.pixels and not (isinstance(split.x, Tensor) and split.x.dtype == torch.uint8):
        raise DataError(f"{where}: pixels are one tensor of uint8; expected that, or pixels=False")
    if classes:
        _check_classes(where, split.y, classes)


def _finite(t: Tensor) -> bool:
    return not t.is_floating_point() or bool(t.sum(dtype=torch.float64).isfinite())   # only if all numbers are


def _check_tensor(where: str, name: str, leaf: Any, within: bool) -> None:
    if not isinstance(leaf, Tensor):
        fix = "tensors in tuples and dicts" if within else f"a tensor: torch.as_tensor({name})"
        if isinstance(leaf, Mapping | tuple):              # empty, or not a dict
            fix = f"a dict that holds tensors: dict({name})" if isinstance(leaf, Mapping) else "a tuple of tensors"
        verb = "contains" if within else "is"
        raise DataError(f"{where}: {name} {verb} a {type(leaf).__name__}; expected {fix}")
    if not leaf.dim():
        raise DataError(f"{where}: {name} is a tensor without axes; expected one with a row for each sample")


def _check_classes(where: str, y: Samples, classes: int) -> None:
    if not isinstance(y, Tensor):
        raise DataError(
            f"{where}: targets of {classes} classes are a {type(y).__name__}; expected one tensor, or classes=0 and a"
            " loss of your own"
        )
    if y.is_floating_point() or y.is_complex():
        rows = ": of rows with a number for each class y.argmax(1)" if y.dim() == 2 else ""
        raise DataError(
            f"{where}: targets of {classes} classes are {y.dtype} of shape {list(y.shape)}; expected int64, one for"
            f" each sample{rows}; or classes=0 to regress"
        )
    if y.dtype != torch.int64:
        raise DataError(f"{where}: targets are {y.dtype}; expected int64: y.long()")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < max(classes, 2):   # one class: a binary logit
        raise DataError(f"{where}: targets from {y.min()} to {y.max()}; expected 0 to {max(classes, 2) - 1}")
