"""Data of other libraries as a `Dataset`: Hugging Face, PyTorch, NumPy, and folders of images.

Objects are recognised by what they are, so nothing is imported for them: who has one has its library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.columns import Samples, of_table
from fedsim.data.dataset import Dataset, Split
from fedsim.data.image_folder import read_images
from fedsim.data.splits import encode_targets, holdout, number_clients
from fedsim.errors import ConfigError, DataError
from fedsim.tree import count, mapped

Layout = Literal["auto", "HWC", "CHW"]
KNOWN = (
    "a Dataset; a datasets.Dataset or DatasetDict (Hugging Face); a TensorDataset or another dataset of PyTorch with a"
    " length; arrays or tensors (x, y); the path of a folder with a folder of images for each class"
)


class Reading(NamedTuple):
    """How to read a table: see `dataset_of`."""

    inputs: str | Sequence[str] | None
    target: str | None
    client: str | None
    tokenize: Callable[[list[str]], Mapping[str, Any]] | None


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
    name: str = "",
) -> Dataset:
    """A ``Dataset`` of samples that another library holds.

    Integer and string targets are class labels, others real numbers. Images become float32 ``[C, H, W]``, from 0 to 1
    if they were whole numbers of 8 bits; token ids int64.

    Args:
        data: training samples, or an object with both splits: a ``datasets.DatasetDict``, or a folder with folders
            ``train`` and ``test``.
        test: test samples, of the same kind; by default those of ``data``, or a share of its samples.
        inputs: of a table, its column of inputs, or several, which become the model's keyword arguments.
        target: of a table, its column of targets; by default one called label or alike.
        client: of a table, its column of natural clients.
        tokenize: makes arrays of equal length of texts: ``lambda texts: tokenizer(texts, padding="max_length",
            truncation=True, max_length=64)``.
        layout: place of the channels in images; "auto" finds it out.
        test_fraction: share of each class to test on, where there is no test split.
        regression: take whole numbers as real targets.
        name: of the data set; by default the kind of object.

    Raises:
        ConfigError: an object of unknown kind, or options that do not fit it.
        DataError: samples without a common shape, or a column that is no input.
    """
    if isinstance(data, Dataset):
        return data
    options = Reading(inputs, target, client, tokenize)
    train, held = _halves(data, test)
    parts = [_aligned(_samples(part, options)) for part in ((train,) if held is None else (train, held))]
    owners = [part.client for part in parts]
    if any((owner is None) != (owners[0] is None) for owner in owners):
        raise DataError("one split has natural clients and the other has none; expected them in both, or neither")
    ends = np.cumsum([0, *(count(part.x) for part in parts)])
    x = _together([_images(part, layout) for part in parts])
    y, classes, labels = _targets(parts, regression)
    mask = np.arange(ends[-1]) >= ends[1]
    where = name or type(data).__name__
    if held is None:
        strata = y.numpy() if classes and y.dim() == 1 else np.zeros(len(y), np.int64)
        mask = holdout((strata,), test_fraction, 0, where)
    names: tuple[str, ...] | None = None
    numbers = None
    if owners[0] is not None:
        numbers, names = number_clients(np.concatenate([np.asarray(owner).astype(str) for owner in owners]), mask)

    def split(chosen: NDArray[np.bool_]) -> Split:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return Split(mapped(lambda t: t[rows], x), y[rows], None if numbers is None else numbers[chosen])

    return Dataset(where, split(~mask), split(mask), classes, names, labels)


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
    if _is_table(data):
        return of_table(data, *options)
    given = [name for name, value in zip(Reading._fields, options, strict=True) if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: names of columns, but data is a {type(data).__name__}; leave them out")
    if isinstance(data, str | Path):
        return read_images(Path(data).expanduser())
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if isinstance(data, tuple) and len(data) in (2, 3) and all(isinstance(t, Tensor | np.ndarray | list) for t in data):
        x, y, *owner = (t if isinstance(t, Tensor) else np.asarray(t) for t in data)
        return Samples(_tensor(x, "x"), _plain(y), _plain(owner[0]) if owner else None)
    if isinstance(data, torch.utils.data.IterableDataset) or not hasattr(data, "__getitem__"):
        raise ConfigError(f"data is a {type(data).__name__}; expected {KNOWN}")
    return _of_pairs(data)


def _of_pairs(data: Any) -> Samples:
    """Samples of a dataset of PyTorch, one pair after the other."""
    try:
        pairs = [data[i] for i in range(len(data))]
        xs, ys = zip(*((pair[0], pair[1]) for pair in pairs), strict=True)
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"data is a {type(data).__name__}, whose items are no pairs (input, target) ({error}); expected {KNOWN}"
        ) from None
    images = [x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in xs]   # np.array: of pictures too
    if len(shapes := {tuple(x.shape) for x in images}) > 1:
        some = ", ".join(str(list(shape)) for shape in sorted(shapes)[:3])
        raise DataError(f"inputs have the shapes {some}{' ...' * (len(shapes) > 3)}; expected one: resize or pad them")
    return Samples(_tensor(torch.stack(images), "x"), np.array([_scalar(y) for y in ys]))


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0 else value


def _plain(values: Any) -> NDArray[Any]:
    return values.numpy() if isinstance(values, Tensor) else np.asarray(values)


def _tensor(values: Any, what: str) -> Tensor:
    """A tensor of a type that models take: uint8 for images so far, float32 or float64, or int64."""
    try:
        t = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    except TypeError as error:
        raise DataError(f"{what} is an array of {values.dtype}; expected numbers ({error})") from None
    if t.dtype == torch.uint8 or t.dtype in (torch.float32, torch.float64):
        return t
    return t.float() if t.is_floating_point() else t.long()


def _images(part: Samples, layout: Layout) -> Any:
    return mapped(lambda t: _image(t, layout), part.x)


def _image(t: Tensor, layout: Layout) -> Tensor:
    """Images ``[N, C, H, W]`` in float32; anything else as it is."""
    whole, dims = t.dtype == torch.uint8, t.dim()
    if dims == 3 and whole:
        t = t.unsqueeze(1)                                 # grey
    elif dims == 4 and layout != "CHW" and (layout == "HWC" or _channels_last(t.shape)):
        t = t.permute(0, 3, 1, 2).contiguous()
    return t.float() / 255 if whole and t.dim() == 4 else t.float() if whole else t


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
    y = np.concatenate([part.y if part.labels == labels else _renumbered(part, labels) for part in parts])
    if y.dtype.kind == "f" or regression:
        return torch.from_numpy(y.astype(np.float32)), 0, None
    if y.ndim > 1:                                         # next tokens
        return torch.from_numpy(y.astype(np.int64)), int(y.max()) + 1, None
    if labels is not None:                                 # numbered already
        return torch.from_numpy(y.astype(np.int64)), len(labels), labels
    words = y.astype(str) if y.dtype.kind == "O" else y
    found = encode_targets(words, "target", regress="to predict numbers, set regression=True")
    return torch.from_numpy(found.y), found.classes, found.label_names


def _renumbered(part: Samples, labels: tuple[str, ...] | None) -> NDArray[Any]:
    """Class numbers by the names that the training split gives them."""
    own, known = part.labels or (), labels or ()
    if unknown := [name for name in own if name not in known]:
        raise DataError(f"the test split has the class {unknown[0]!r}, which the training split lacks")
    numbers: NDArray[Any] = np.array([known.index(name) for name in own])[part.y]
    return numbers
