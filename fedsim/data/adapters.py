"""Data of other libraries as a `Dataset`: Hugging Face, pandas, PyTorch, NumPy, and folders of images.

Objects are recognised by their attributes, so that no library is imported: whoever has an object has its library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.arrays import inputs_of, owners_of, targets_of
from fedsim.data.columns import Samples, of_table
from fedsim.data.dataset import Dataset, Split
from fedsim.data.frames import features, is_frame, of_frame
from fedsim.data.image_folder import read_images
from fedsim.data.splits import encode_targets, holdout, number_clients, standardized
from fedsim.errors import ConfigError, DataError
from fedsim.tree import count, flat, mapped

Layout = Literal["auto", "HWC", "CHW"]
LAYOUTS = ("auto", "HWC", "CHW")
KNOWN = (
    "a Dataset; a datasets.Dataset or DatasetDict (Hugging Face); a DataFrame of pandas; a TensorDataset or another"
    " dataset of PyTorch with a length; arrays, tensors or lists (x, y) or (x, y, client); the path of a folder with a"
    " folder of images for each class"
)


class Reading(NamedTuple):
    """How to read a table: see `dataset_of`."""

    inputs: str | Sequence[str] | None
    target: str | None
    client: str | None
    tokenize: Callable[[list[str]], Mapping[str, Any]] | None


def images(path: str | Path, *, size: Sequence[int] | None = None, test_fraction: float | None = None) -> Dataset:
    """A folder of images with a folder for each class, or that in folders ``train`` and ``test``: uint8
    ``[N, C, H, W]`` in memory, which models get as real numbers from 0 to 1.

    Args:
        path: the folder.
        size: height and width to which images are resized, such as [32,32]; by default all must have one size.
        test_fraction: share of each class that is held out for testing, 0.2 by default; leave it out with a folder
            ``test``.
    """
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"size is {list(size)}; expected height and width, such as [32,32]")
    train, test = _halves(path, None)
    if test is not None and test_fraction is not None:
        raise ConfigError(f"test_fraction is {test_fraction}, but {path} has a folder of test images; leave it out")
    train, test = (None if half is None else read_images(Path(half).expanduser(), size) for half in (train, test))
    return dataset_of(train, test, test_fraction=0.2 if test_fraction is None else test_fraction, name="images")


def dataset_of(
    data: Any,
    test: Any = None,
    *,
    inputs: str | Sequence[str] | None = None,
    target: str | None = None,
    client: str | None = None,
    tokenize: Callable[[list[str]], Mapping[str, Any]] | None = None,
    layout: Layout = "auto",
    test_fraction: float = 0.2,
    regression: bool = False,
    standardize: bool = False,
    name: str = "",
) -> Dataset:
    """A ``Dataset`` of samples that another library holds.

    Integer and string targets are class labels, others real numbers. Images become ``[C, H, W]``; those of whole
    numbers of 8 bits stay so in memory, and models get them as real numbers from 0 to 1. Token ids become int64.

    Args:
        data: training samples, or an object with both splits: a ``datasets.DatasetDict``, or a folder with folders
            ``train`` and ``test``.
        test: test samples, of the same kind; by default those of ``data``, or a share of its samples.
        inputs: of a table, its column of inputs, or several, which become the model's keyword arguments; of a data
            frame, its columns of features, by default all that are left.
        target: of a table, its column of targets; by default one called label or alike.
        client: of a table, its column of natural clients.
        tokenize: makes arrays of equal length of texts: ``lambda texts: tokenizer(texts, padding="max_length",
            truncation=True, max_length=64)``.
        layout: place of the channels in images; "auto" finds it out.
        test_fraction: share of each class to test on, where there is no test split.
        regression: take whole numbers as real targets.
        standardize: shift and scale each feature of a table to mean 0 and variance 1 over the training samples.
        name: of the data set; by default the kind of object.

    Raises:
        ConfigError: an object of unknown kind, or options that do not fit it.
        DataError: samples without a common shape, or a column that is no input.
    """
    if isinstance(data, Dataset):
        return data
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}")
    options = Reading(inputs, target, client, tokenize)
    train, held = _halves(data, test)
    parts = [_aligned(_samples(part, options)) for part in ((train,) if held is None else (train, held))]
    owners = [part.client for part in parts]
    if any((owner is None) != (owners[0] is None) for owner in owners):
        raise DataError("one split has natural clients and the other has none; expected them in both, or neither")
    ends = np.cumsum([0, *(count(part.x) for part in parts)])
    if not ends[1] or (held is not None and ends[2] == ends[1]):
        raise DataError(f"data has {ends[1]} training samples and {ends[-1] - ends[1]} test samples; expected some")
    if (names_of := {part.names for part in parts}) - {parts[0].names}:
        raise DataError(f"training and test samples have other columns: {names_of}; expected the same, in one order")
    x = _together([_images(part, layout) for part in parts])
    pixels = isinstance(x, Tensor) and x.dtype == torch.uint8
    y, classes, labels = _targets(parts, regression)
    mask = np.arange(ends[-1]) >= ends[1]
    where = name or type(data).__name__
    if held is None:
        strata = y.numpy() if classes and y.dim() == 1 else np.zeros(len(y), np.int64)
        mask = holdout((strata,), test_fraction, 0, where)
    if standardize:
        if not isinstance(x, Tensor):
            raise ConfigError("standardize is true, and inputs are several tensors; expected one [N, features]")
        x = torch.from_numpy(standardized(x.numpy(), mask, where))
    names: tuple[str, ...] | None = None
    numbers = None
    if owners[0] is not None:
        numbers, names = number_clients(np.concatenate([np.asarray(owner).astype(str) for owner in owners]), mask)

    def split(chosen: NDArray[np.bool_]) -> Split:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Split(mapped(lambda t: t[rows], x), y[rows], None if numbers is None else numbers[chosen], pixels)

    return Dataset(where, split(~mask), split(mask), classes, names, labels, feature_names=parts[0].names)


def _halves(data: Any, test: Any) -> tuple[Any, Any]:
    """Training samples, and test samples if there are any."""
    if isinstance(data, Mapping) and not _is_table(data):
        if "train" not in data:
            raise ConfigError(f"data has the splits {', '.join(map(str, data))}; expected one called train")
        other = next((data[name] for name in ("test", "validation", "valid", "dev") if name in data), None)
        return data["train"], other if test is None else test
    if isinstance(data, str | Path):
        folder = Path(data).expanduser()
        if (folder / "train").is_dir():
            other = next((folder / name for name in ("test", "val", "valid") if (folder / name).is_dir()), None)
            return folder / "train", other if test is None else test
        return folder, test
    return data, test


def _is_table(data: Any) -> bool:
    return hasattr(data, "features") and hasattr(data, "column_names") and not isinstance(data, Mapping)


def _aligned(samples: Samples) -> Samples:
    """The samples, whose inputs, targets and clients are of one number."""
    numbers = {"inputs": count(samples.x), "targets": len(samples.y)}
    numbers |= {} if samples.client is None else {"clients": len(samples.client)}
    if len(set(numbers.values())) > 1:
        given = ", ".join(f"{number} {name}" for name, number in numbers.items())
        raise DataError(f"data has {given}; expected as many of each, in one order")
    return samples


def _samples(data: Any, options: Reading) -> Samples:
    """The samples of one split."""
    if isinstance(data, Samples):                          # read already
        return data
    if _is_table(data):
        return of_table(data, *options)
    if is_frame(data):
        if options.tokenize is not None:
            raise ConfigError("tokenize: data is a data frame, whose inputs are numbers; leave it out")
        return of_frame(data, *options[:3])
    given = [name for name, value in zip(Reading._fields, options, strict=True) if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: names of columns, but data is a {type(data).__name__}; leave them out")
    if isinstance(data, str | Path):
        return read_images(Path(data).expanduser())
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if isinstance(data, tuple):
        return _of_arrays(data)
    if isinstance(data, torch.utils.data.IterableDataset) or not _has_items(data):
        raise ConfigError(f"data is a {type(data).__name__}; expected {KNOWN}")
    return _of_pairs(data)


def _has_items(data: Any) -> bool:
    """True for a dataset of PyTorch, or something alike; an array is no data, as targets are missing."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "shape")


def _of_arrays(data: tuple[Any, ...]) -> Samples:
    """Samples of a tuple of arrays, tensors, lists, series or frames."""
    if len(data) not in (2, 3):
        raise ConfigError(f"data is a tuple of {len(data)}; expected (x, y) or (x, y, client)")
    for what, part in zip(("x", "y", "client"), data, strict=False):
        if isinstance(part, str | bytes) or not hasattr(part, "__len__"):
            raise ConfigError(f"{what} is a {type(part).__name__}; expected an array, a tensor or a list")
    x, y, *owner = data
    names = tuple(map(str, x.columns)) if is_frame(x) else None
    inputs = features(x, list(x.columns)) if is_frame(x) else inputs_of(x)
    return Samples(inputs, targets_of(y), owners_of(owner[0]) if owner else None, names=names)


def _of_pairs(data: Any) -> Samples:
    """Samples of a dataset of PyTorch, one pair after the other."""
    if not len(data):
        raise DataError(f"data is a {type(data).__name__} without items; expected samples")
    try:
        pairs = [data[i] for i in range(len(data))]
        xs, ys = zip(*((pair[0], pair[1]) for pair in pairs), strict=True)
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"data is a {type(data).__name__}, whose items are no pairs (input, target) ({error}); expected {KNOWN}"
        ) from None
    if any(isinstance(x, str) for x in xs):
        raise DataError(f"inputs are texts such as {xs[0]!r:.60}; expected numbers: token ids of one length")
    rows = [x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in xs]   # np.array: of pictures too
    return Samples(inputs_of(rows, "inputs"), targets_of([_scalar(y) for y in ys], "targets"))


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0 else value


def _images(part: Samples, layout: Layout) -> Any:
    if layout != "auto" and all(t.dim() not in (3, 4) for t in flat(part.x)):
        shape = list(flat(part.x)[0].shape[1:])
        raise ConfigError(f"layout is {layout!r}, and inputs of shape {shape} are no images; leave it out")
    found = mapped(lambda t: _image(t, layout), part.x)
    if isinstance(found, Tensor) and found.dtype == torch.uint8 and found.dim() == 4:
        return found                                       # kept as bytes
    return mapped(lambda t: t if t.dtype != torch.uint8 else t.float() / 255 if t.dim() == 4 else t.float(), found)


def _image(t: Tensor, layout: Layout) -> Tensor:
    """Images ``[N, C, H, W]``; anything else as it is."""
    if t.dim() == 3 and t.dtype == torch.uint8:
        return t.unsqueeze(1)                              # grey
    if t.dim() == 4 and layout != "CHW" and (layout == "HWC" or _channels_last(t.shape)):
        return t.permute(0, 3, 1, 2).contiguous()
    return t


def _channels_last(shape: Sequence[int]) -> bool:
    first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if first and last:
        raise ConfigError(f"images of shape {list(shape[1:])} have channels first or last; say which: layout='HWC'")
    return last


def _together(parts: Sequence[Any]) -> Any:
    """Inputs of both splits as one."""
    first, *others = parts
    if not others:
        return first
    try:
        flats = [part if isinstance(part, dict) else {"x": part} for part in parts]
        joined = {key: torch.cat([part[key] for part in flats]) for key in flats[0]}
    except (KeyError, RuntimeError) as error:
        raise DataError(f"training and test inputs do not fit each other: {error}") from None
    return joined if isinstance(first, dict) else joined["x"]


def _targets(parts: Sequence[Samples], regression: bool) -> tuple[Tensor, int, tuple[str, ...] | None]:
    """Targets of both splits, the number of classes (0: real numbers), and the names of these."""
    labels = parts[0].labels
    kinds = {_kind(part.y) for part in parts}
    if len(kinds) > 1:
        raise DataError(f"training and test targets are of the kinds {' and '.join(sorted(kinds))}; expected one")
    if len(shapes := {part.y.shape[1:] for part in parts}) > 1:
        raise DataError(f"training and test targets have the shapes {', '.join(map(str, shapes))}; expected one")
    y = np.concatenate([part.y if part.labels == labels else _renumbered(part, labels) for part in parts])
    if regression and y.dtype.kind not in "buif":
        raise DataError(f"targets are words such as {y.ravel()[0]!s:.40}, and regression=True; expected numbers")
    if y.dtype.kind == "f" or regression:
        return torch.from_numpy(y.astype(np.float32)), 0, None
    if y.ndim > 1:                                         # next tokens
        x = parts[0].x
        if y.dtype.kind not in "iu" or not isinstance(x, Tensor) or x.is_floating_point() or x.shape[1:] != y.shape[1:]:
            raise DataError(
                f"targets of {y.dtype} have shape {list(y.shape)}; expected [N], a label for each sample, of one-hot"
                " rows y.argmax(1); or next tokens, of the shape of the inputs; or real numbers"
            )
        if y.min() < 0:
            raise DataError(f"targets are next tokens from {y.min()} on; expected 0 or more: cut off padding before")
        return torch.from_numpy(y.astype(np.int64)), int(y.max()) + 1, None
    if labels is not None:                                 # numbered already
        return torch.from_numpy(y.astype(np.int64)), len(labels), labels
    found = encode_targets(y, "target", regress="to predict numbers, set regression=True")
    return torch.from_numpy(found.y), found.classes, found.label_names


def _kind(y: NDArray[Any]) -> str:
    return {"U": "words", "f": "real numbers"}.get(y.dtype.kind, "whole numbers")


def _renumbered(part: Samples, labels: tuple[str, ...] | None) -> NDArray[Any]:
    """Class numbers by the names that the training split gives them."""
    own, known = part.labels or (), labels or ()
    if unknown := [name for name in own if name not in known]:
        raise DataError(f"the test split has the class {unknown[0]!r}, which the training split lacks")
    numbers: NDArray[Any] = np.array([known.index(name) for name in own])[part.y]
    return numbers
