"""Signature of a data set, by which two parties find that theirs differ, without showing each other a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset
from fedsim.errors import DataError, few, many
from fedsim.tree import Samples, flat, mapped

UNIT = 50.0
"""Ratio of the mean magnitudes of values from which their units are taken to differ."""
EXACT = 1e-4
"""Relative difference of checksums that rounding on another machine explains."""


class Checksum(NamedTuple):
    """Random projection ``u' X v`` of samples ``X [N, d]``, and the norm of ``X``, by which differences count."""

    value: float
    norm: float


@dataclass(frozen=True)
class Signature:
    """Form of a data set's samples, and the names and units in them.

    Attributes:
        shape: of one input; empty for several tensors.
        dtype: of inputs, such as float32; types and shapes of several tensors.
        classes: number of classes, 0 for regression.
        labels: class names, the vocabulary of texts; None if classes are plain numbers.
        features: names of the features; None if they have none.
        target: name of the target column; None if it has none.
        scale: mean magnitude of the values other than 0: of each feature if they have names, else of all; empty for
            whole numbers.
        checksums: of training inputs and targets where all parties have the same samples; else None.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: int
    labels: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    target: str | None = None
    scale: tuple[float, ...] = ()
    checksums: tuple[Checksum, Checksum] | None = None

    @classmethod
    def parsed(cls, values: Any) -> Signature:
        """Parse received values, as of ``dataclasses.asdict``; raises KeyError, TypeError or ValueError."""
        names = {key: None if values[key] is None else tuple(map(str, values[key])) for key in ("labels", "features")}
        sums = values["checksums"]
        return cls(
            tuple(int(length) for length in values["shape"]), str(values["dtype"]), int(values["classes"]), **names,
            target=None if values["target"] is None else str(values["target"]),
            scale=tuple(map(float, values["scale"])),
            checksums=None if sums is None else tuple(Checksum(float(v), float(n)) for v, n in sums),  # type: ignore[arg-type]
        )  # fmt: skip


class MismatchError(DataError):
    """A data set does not have the expected signature.

    Attributes:
        public: the error in terms of the expected signature alone, without anything of the data set.
    """

    def __init__(self, public: str, detail: str = "") -> None:
        super().__init__(f"{public}{detail and f' ({detail})'}")
        self.public = public


def signature(data: Dataset, same: bool = False) -> Signature:
    """Signature of a data set; with ``same``, checksums are part of it."""
    x, y = data.train.x, data.train.y
    return Signature(
        *_form(x), data.classes, data.label_names, data.feature_names, data.target_name,
        _scale(x, data.feature_names is not None), (checksum(x), checksum(y)) if same else None,
    )  # fmt: skip


def fitted(data: Dataset, to: Signature) -> Dataset:
    """The data set with features and classes in the order of a signature.

    Raises:
        MismatchError: it differs by more than an order.
    """
    data = _in_columns(data, to)
    shape, dtype = _form(data.train.x)
    if (shape, dtype) != (to.shape, to.dtype):
        raise MismatchError(
            f"its inputs are not {_told(to.shape, to.dtype)}, as the experiment's are; give it samples of that form",
            f"they are {_told(shape, dtype)}",
        )
    data = _in_classes(data, to)
    _check_units(data, to)
    for what, values, expected in zip(("inputs", "targets"), data.train[:2], to.checksums or (), strict=False):
        found = checksum(values)
        if not abs(found.value - expected.value) <= EXACT * max(expected.norm, found.norm):
            raise MismatchError(f"its {what} differ from the experiment's; give both the same files")
    return data


def checksum(x: Samples) -> Checksum:
    """Checksum of samples, with that of one tensor after the other where there are several."""
    values, norms = zip(*map(_checksum, flat(x)), strict=True)
    return Checksum(sum(values), math.hypot(*norms))


def _checksum(x: Tensor) -> Checksum:
    rows = x.reshape(len(x), -1)
    rng = np.random.default_rng(0)
    u, v = (torch.from_numpy(rng.standard_normal(size)) for size in rows.shape)
    total = norm = 0.0
    for start in range(0, len(rows), 4096):                # bounds the copy in float64
        part = rows[start : start + 4096].double()
        total += float(u[start : start + 4096] @ (part @ v))
        norm += float(part.square().sum())
    return Checksum(total, norm**0.5)


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _form(x: Samples) -> tuple[tuple[int, ...], str]:
    """Shape of a sample, and its type; of several tensors both are in the latter, by name."""
    if isinstance(x, Tensor):
        return tuple(x.shape[1:]), _name(x)
    return (), str(mapped(lambda t: f"{_name(t)}{list(t.shape[1:])}", x))


def _told(shape: tuple[int, ...], dtype: str) -> str:
    return dtype if dtype.startswith(("{", "(")) else f"{dtype}{list(shape)}"


def _scale(x: Samples, by_feature: bool) -> tuple[float, ...]:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return ()
    axis = 0 if by_feature else None
    count = torch.count_nonzero(x, axis).double()
    total = x.abs().sum(dtype=torch.float64) if axis is None else x.abs().sum(axis, dtype=torch.float64)
    return tuple((total / count.clamp(min=1)).reshape(-1).tolist())


def _in_columns(data: Dataset, to: Signature) -> Dataset:
    if data.feature_names is None or to.features is None or data.feature_names == to.features:
        return data
    missing = [name for name in to.features if name not in data.feature_names]
    more = [name for name in data.feature_names if name not in to.features]
    if missing or more:
        lacks = f" and lack {few(missing)}" if missing else ""
        raise MismatchError(
            f"its columns have {many(len(more), 'other feature')} than the experiment's{lacks}; give it a file with the"
            f" columns {few(to.features)}{'' if to.target is None else f' and the target {to.target}'}",
            f"its features are {few(data.feature_names)}",
        )
    order = [data.feature_names.index(name) for name in to.features]
    train, test = (split._replace(x=split.x[:, order]) for split in (data.train, data.test))
    return replace(data, train=train, test=test, feature_names=to.features)


def _in_classes(data: Dataset, to: Signature) -> Dataset:
    if bool(data.classes) != bool(to.classes):
        raise MismatchError(f"its targets are {'real numbers' if to.classes else 'classes'}, the experiment's are not")
    if data.label_names is None or to.labels is None:
        if data.classes > to.classes:
            raise MismatchError(f"it has more classes than the experiment's {to.classes}", f"it has {data.classes}")
        return replace(data, classes=to.classes)
    if strange := [name for name in data.label_names if name not in to.labels]:
        kind = "character" if data.train.y.dim() > 1 else "label"
        raise MismatchError(
            f"it has {many(len(strange), kind)} that the experiment's data lack, which have {few(to.labels)}; change"
            " its files, or those of the experiment",
            f"it has {few(strange)}",
        )
    number = torch.tensor([to.labels.index(name) for name in data.label_names])
    train, test = (split._replace(y=number[split.y]) for split in (data.train, data.test))
    if data.train.y.dim() > 1:                             # texts, whose inputs are characters too
        train, test = (split._replace(x=number[split.x]) for split in (train, test))
    return replace(data, train=train, test=test, classes=to.classes, label_names=to.labels)


def _check_units(data: Dataset, to: Signature) -> None:
    found, names = _scale(data.train.x, data.feature_names is not None), to.features or ("all inputs",)
    if len(found) != len(to.scale) or len(found) != len(names):
        return                                             # one party alone has names
    for name, mine, theirs in zip(names, found, to.scale, strict=True):
        if mine and theirs and not 1 / UNIT <= mine / theirs <= UNIT:
            raise MismatchError(
                f"its values of {name} are more than {UNIT:g} times as {'large' if mine > theirs else 'small'} as the"
                " experiment's; give both the same unit, or standardize each (data.standardize true)",
                f"in the mean {mine:.3g} and {theirs:.3g}",
            )
