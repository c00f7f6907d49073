"""Arrays in a folder of NumPy's ``.npy`` files, of which the inputs stay on disk: data sets larger than memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.dataset import Dataset, Split
from fedsim.data.npz import KINDS, UNREADABLE, as_targets
from fedsim.data.sources import user_folder
from fedsim.data.splits import number_clients
from fedsim.errors import DataError

NEEDED = ("x", "y", "x_test", "y_test")
EXPECTED = "a folder with x.npy, y.npy, x_test.npy and y_test.npy"


def npy(path: str | Path) -> Dataset:
    """Memory-mapped inputs ``x.npy`` ``[N, ...]`` with ``y.npy`` ``[N]`` (integers or strings: classes; reals:
    regression), ``x_test.npy`` and ``y_test.npy``, and perhaps ``client.npy`` ``[N]`` and ``label_names.npy``.

    Inputs are read as batches need them: uint8 as pixels, which models get as 0 to 1, other whole numbers as token ids.

    Args:
        path: the folder.
    """
    folder = user_folder(path, EXPECTED)
    files = {file.stem: file for file in folder.glob("*.npy")}
    if missing := [name for name in NEEDED if name not in files]:
        absent = ", ".join(f"{name}.npy" for name in missing)
        raise DataError(f"{folder}: no {absent}; expected {EXPECTED}, as numpy.save writes them")
    inputs = [_inputs(files[name]) for name in ("x", "x_test")]
    if inputs[0].dtype != inputs[1].dtype:
        raise DataError(f"{folder}: x.npy is {inputs[0].dtype}, x_test.npy {inputs[1].dtype}; expected the same type")
    small = {name: _read(files[name], None) for name in ("y", "y_test", "client", "label_names") if name in files}
    for name, rows in (("y", inputs[0]), ("y_test", inputs[1]), ("client", inputs[0])):
        if name in small and small[name].shape != rows.shape[:1]:
            raise DataError(
                f"{files[name]}: shape {list(small[name].shape)}; expected one value for each of {len(rows)} inputs"
            )
    targets = as_targets(np.concatenate([small["y"], small["y_test"]]), small.get("label_names"), folder)
    y = torch.from_numpy(targets.y)
    client, names = None, None
    if "client" in small:
        client, names = number_clients(small["client"], np.zeros(len(small["client"]), bool))
    n, pixels = len(inputs[0]), inputs[0].dtype == torch.uint8
    train, test = Split(inputs[0], y[:n], client, pixels), Split(inputs[1], y[n:], None, pixels)
    ignored = sorted(files.keys() - {*NEEDED, "client", "label_names"})
    notes = f"files ignored: {', '.join(ignored)}" if ignored else ""
    return Dataset("npy", train, test, targets.classes, names, targets.label_names, notes)


def _inputs(file: Path) -> Tensor:
    x = _read(file, "c")                                   # copy on write, as torch has no arrays to read alone
    if x.dtype not in (np.uint8, np.float16, np.float32, np.float64, np.int32, np.int64) or not x.dtype.isnative:
        raise DataError(
            f"{file}: inputs of {x.dtype.str}; expected float32 or float64, uint8 as pixels, or int32 or int64 as token"
            " ids"
        )
    if x.ndim < 2 or not x.flags.c_contiguous:
        raise DataError(f"{file}: shape {list(x.shape)}; expected [N, ...] in C order, a row for each sample")
    if x.ndim == 4 and x.dtype == np.uint8 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise DataError(f"{file}: images {list(x.shape)} have their channels last; expected [N, C, H, W]")
    t = torch.from_numpy(x)
    return t.unsqueeze(1) if x.ndim == 3 and x.dtype == np.uint8 else t


def _read(file: Path, mode: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode=mode, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable .npy of a plain array ({error}); save it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in KINDS.get(file.stem.removesuffix("_test"), "U"):
        raise DataError(f"{file}: {getattr(array, 'dtype', type(array))}; expected numbers, or strings as labels")
    return array
