"""IDX files (LeCun's MNIST format): MNIST with its writers, FashionMNIST, and a user's own.

MNIST: LeCun et al., "Gradient-based learning applied to document recognition", 1998. Its writers: Yadav and Bottou,
"Cold case: the lost MNIST digits" (QMNIST), 2019. FashionMNIST: Xiao, Rasul and Vollgraf, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.dataset import Dataset, Split
from fedsim.data.images import Constants, check_labels, normalize
from fedsim.data.sources import Remote, Source, Store, existing, own_files, read_bytes, user_folder
from fedsim.data.splits import number_clients
from fedsim.errors import DataError

IMAGES, LABELS, WRITERS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte", "{}-writers-idx1-int"
PARTS = ("train", "t10k")
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FASHION_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

MNIST = Source(
    title="MNIST",
    origin="https://yann.lecun.com/exdb/mnist or a mirror of it",
    folder="MNIST/raw",
    base_url="https://storage.googleapis.com/cvdf-datasets/mnist",
    files={
        name: Remote(f"{name}.gz", checksum)
        for name, checksum in {
            "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        }.items()
    },
)
QMNIST = Source(
    title="QMNIST labels (the writers of MNIST)",
    origin="https://github.com/facebookresearch/qmnist",
    folder="MNIST/raw",
    base_url="https://raw.githubusercontent.com/facebookresearch/qmnist/master",
    files={
        "qmnist-train-labels-idx2-int": Remote(
            "qmnist-train-labels-idx2-int.gz", "md5:0058f8dd561b90ffdd0f734c6a30e5e4"
        ),
        "qmnist-test-labels-idx2-int": Remote("qmnist-test-labels-idx2-int.gz", "md5:5b5b05890a5e13444e108efe57b788aa"),
    },
)
FASHION_MNIST = Source(
    title="FashionMNIST",
    origin="https://github.com/zalandoresearch/fashion-mnist, or the Debian package dataset-fashion-mnist",
    folder="FashionMNIST/raw",
    base_url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    files={
        name: Remote(f"{name}.gz", checksum)
        for name, checksum in {
            "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        }.items()
    },
    elsewhere=(Path("/usr/share/datasets/fashion-mnist"),),
)


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file (plain or ``.gz``), in the machine's byte order; raises `DataError` if it is corrupt."""
    data = read_bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        raise DataError(f"{path}: starts with bytes {data[:4].hex(' ')}; expected an IDX magic number 00 00 type rank")
    dtype, start = np.dtype(TYPES[data[2]]), 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[k : k + 4], "big") for k in range(4, start, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise DataError(f"{path}: {len(data)} bytes; expected {expected} for IDX shape {list(shape)} (truncated?)")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_part(files: dict[str, Path], part: str, classes: int | None, mean: Constants, std: Constants) -> Split:
    """One split of an MNIST-like data set."""
    path = files[IMAGES.format(part)]
    pixels = read_idx(path)
    if pixels.ndim not in (3, 4) or pixels.dtype != np.uint8:
        raise DataError(
            f"{path}: {pixels.dtype} array of shape {list(pixels.shape)}; expected bytes [N, H, W] or [N, C, H, W]"
        )
    if 0 in pixels.shape[1:]:
        raise DataError(f"{path}: shape {list(pixels.shape)}; expected images with at least one pixel")
    path = files[LABELS.format(part)]
    return Split(normalize(pixels, mean, std), check_labels(read_idx(path), len(pixels), classes, path))


def read_writers(folder: Path, parts: Sequence[Split]) -> list[NDArray[Any]] | None:
    """Writer id of each sample of the two splits, from the files of ids in ``folder``; None without them."""
    paths = [path for part in PARTS if (path := existing(folder / WRITERS.format(part)))]
    if not paths:
        return None
    if len(paths) < len(PARTS):
        expected = " and ".join(map(WRITERS.format, PARTS))
        raise DataError(f"{paths[0]}: the writers of one split alone; expected {expected}, or neither")
    writers = [read_idx(path) for path in paths]
    for path, ids, split in zip(paths, writers, parts, strict=True):
        if ids.dtype.kind not in "iu":
            raise DataError(f"{path}: writers of type {ids.dtype}; expected whole numbers")
        if ids.shape != (len(split.y),):
            raise DataError(f"{path}: shape {list(ids.shape)}; expected one writer for each of {len(split.y)} images")
    return writers


def qmnist_writers(path: Path, split: Split) -> NDArray[Any]:
    """Column 2 of QMNIST's labels. Its rows are in MNIST's order, and its test split begins with MNIST's."""
    rows = read_idx(path)[: len(split.y)]
    if rows.ndim != 2 or rows.shape[1] < 3 or not np.array_equal(rows[:, 0], split.y.numpy()):
        raise DataError(f"{path}: its rows do not carry MNIST's labels in column 0; expected QMNIST's label file")
    return rows[:, 2]


def with_clients(data: Dataset, writers: Sequence[NDArray[Any]] | None) -> Dataset:
    """The data set with the writers of its two splits as natural clients."""
    if writers is None:
        return data
    test = np.arange(sum(map(len, writers))) >= len(writers[0])
    client, names = number_clients(np.concatenate(writers), test)
    train, held = data.train._replace(client=client[~test]), data.test._replace(client=client[test])
    return Dataset(data.name, train, held, data.classes, names, data.label_names)


def mnist(store: Store) -> Dataset:
    """60,000 + 10,000 digits ``[1, 28, 28]``; natural clients are the writers where a file names them."""
    files = store.find(MNIST)
    train, test = (read_part(files, part, 10, 0.1307, 0.3081) for part in PARTS)
    writers = read_writers(files[IMAGES.format("train")].parent, (train, test))
    if writers is None and (store.download or len(store.look(QMNIST)) == len(QMNIST.files)):
        writers = list(map(qmnist_writers, store.find(QMNIST).values(), (train, test)))
    return with_clients(Dataset("mnist", train, test, classes=10), writers)


def fashion_mnist(store: Store) -> Dataset:
    """60,000 + 10,000 pictures of clothing ``[1, 28, 28]``."""
    files = store.find(FASHION_MNIST)
    train, test = (read_part(files, part, 10, 0.2860, 0.3530) for part in PARTS)
    return Dataset("fashion_mnist", train, test, classes=10, label_names=FASHION_LABELS)


def idx(path: str | Path, *, mean: Constants = 0.0, std: Constants = 1.0) -> Dataset:
    """A folder with ``{train,t10k}-{images-idx3,labels-idx1}-ubyte`` and perhaps ``{train,t10k}-writers-idx1-int``.

    Args:
        path: the folder.
        mean: of the pixels, which lie in [0, 1], of each channel or of all; it is subtracted.
        std: their standard deviation, by which they are then divided.
    """
    folder = user_folder(path, "a folder of IDX files")
    files = own_files(folder, [kind.format(part) for part in PARTS for kind in (IMAGES, LABELS)])
    train, test = (read_part(files, part, None, mean, std) for part in PARTS)
    classes = int(max(train.y.max(), test.y.max())) + 1
    return with_clients(Dataset("idx", train, test, classes), read_writers(folder, (train, test)))
