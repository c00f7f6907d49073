"""Arrays, lists, tensors and series of other libraries as inputs, targets and clients, each checked by what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import DataError

OTHER = {"M": "dates", "m": "time differences", "c": "complex numbers", "V": "records of several fields"}
"""Kinds of NumPy that are neither numbers nor texts."""


def inputs_of(values: Any, what: str = "x") -> Tensor:
    """Inputs ``[N, ...]`` of a type that models take: uint8 or bool as they are, float32 or float64, or int64.

    Raises:
        DataError: they are not numbers of one shape, of at least one feature.
    """
    array = array_of(values, what)
    if isinstance(array, np.ndarray) and array.dtype.kind in "US":
        raise DataError(
            f"{what} holds texts such as {str(array.ravel()[0])!r:.60}; expected numbers: token ids of texts, codes of"
            " categories"
        )
    t = array if isinstance(array, Tensor) else torch.from_numpy(_native(array, what))
    if t.is_complex():
        raise DataError(f"{what} holds complex numbers; expected real ones")
    if t.dim() < 2:
        raise DataError(f"{what} has shape {list(t.shape)}; expected [N, ...], a row for each sample: {what}[:, None]")
    if t.dtype in (torch.uint8, torch.bool, torch.float32, torch.float64):
        return t
    return t.float() if t.is_floating_point() else t.long()


def targets_of(values: Any, what: str = "y") -> NDArray[Any]:
    """Targets ``[N, ...]``: whole or real numbers, or words.

    Raises:
        DataError: they are neither, one is missing, or they have a needless axis.
    """
    y = _plain(array_of(values, what), what)
    if y.ndim == 2 and y.shape[1] == 1:
        raise DataError(f"{what} has shape {list(y.shape)}; expected [{len(y)}]: {what}.reshape(-1)")
    _check_finite(y, what, "a target of each sample: leave those without one out")
    return y


def owners_of(values: Any, what: str = "client") -> NDArray[Any]:
    """Natural clients ``[N]``: whole numbers or names.

    Raises:
        DataError: they are neither, or one is missing.
    """
    owners = _plain(array_of(values, what), what)
    if owners.ndim != 1:
        raise DataError(f"{what} has shape {list(owners.shape)}; expected [N], the client of each sample")
    _check_finite(owners, what, "a client of each sample: leave those without one out")
    if owners.dtype.kind == "f":
        if (odd := owners[owners != np.round(owners)]).size:
            raise DataError(f"{what} has the value {odd[0]:g}; expected whole numbers or names of clients")
        owners = owners.astype(np.int64)
    return owners


def array_of(values: Any, what: str) -> NDArray[Any] | Tensor:
    """A dense tensor on the CPU, or an array of numbers, texts or `OTHER`, of what other libraries hold.

    Raises:
        DataError: it is sparse, its rows are of unequal shapes, or its values of several kinds.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise DataError(f"{what} is a sparse tensor; expected a dense one: {what}.to_dense()")
        return values.detach().cpu()
    if hasattr(values, "toarray"):
        raise DataError(f"{what} is a sparse {type(values).__name__}; expected a dense array: {what}.toarray()")
    if hasattr(values, "to_numpy"):                        # series and frames
        values = values.to_numpy()
    if isinstance(values, list | tuple) and values and all(isinstance(row, Tensor) for row in values):
        _check_shapes([tuple(row.shape) for row in values], what)
        return torch.stack(list(values)).detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError:                                     # as NumPy says it, of some axis
        _check_shapes([np.shape(row) for row in values if isinstance(row, np.ndarray | Tensor)], what)
        raise DataError(f"{what} has rows of unequal length; expected one length: pad or cut them") from None
    return _of_objects(array, what) if array.dtype.kind == "O" else array


def _check_shapes(found: Sequence[tuple[int, ...]], what: str) -> None:
    if len(shapes := sorted(set(found))) > 1:
        some = ", ".join(str(list(shape)) for shape in shapes[:3])
        raise DataError(
            f"{what} has rows of the shapes {some}{' ...' * (len(shapes) > 3)}; expected one shape: resize, pad or cut"
            " them"
        )


def _of_objects(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Python objects as numbers or texts, where all of them are."""
    flat = array.ravel().tolist()
    for kind in (str, bool, int, (int, float)):
        if flat and all(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for value in flat):
            return np.array(flat).reshape(array.shape)
    _check_shapes([np.shape(value) for value in flat if isinstance(value, np.ndarray | list | tuple)], what)
    kinds = dict.fromkeys(type(value).__name__ for value in flat)
    fix = "a value for each sample: leave those without one out" if _is_missing(flat) else "numbers, or texts, in all"
    raise DataError(f"{what} holds Python objects of the kinds {', '.join(kinds) or 'none'}; expected {fix}")


def _is_missing(values: Sequence[Any]) -> bool:
    return any(value is None or type(value).__name__ in ("NAType", "NaTType") or value != value for value in values)


def _native(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Numbers in this machine's order of bytes, in memory that can be written."""
    if kind := OTHER.get(array.dtype.kind):
        raise DataError(f"{what} holds {kind} ({array.dtype}); expected real or whole numbers")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else array.copy()


def _plain(array: NDArray[Any] | Tensor, what: str) -> NDArray[Any]:
    found: NDArray[Any] = array.numpy() if isinstance(array, Tensor) else array
    if kind := OTHER.get(found.dtype.kind):
        raise DataError(f"{what} holds {kind} ({found.dtype}); expected numbers or words")
    if not found.ndim:
        raise DataError(f"{what} is the single value {found.item()!r:.40}; expected [N], one for each sample")
    return found.astype(str) if found.dtype.kind == "S" else found


def _check_finite(values: NDArray[Any], what: str, expected: str) -> None:
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        where = np.argwhere(~finite)[0].tolist()
        raise DataError(f"{what}{where} is {values[tuple(where)]}; expected {expected}")
