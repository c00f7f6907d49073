"""CIFAR in its binary version: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

A record is one label byte (two for CIFAR-100: coarse, fine) and 3 x 32 x 32 pixel bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.dataset import Dataset, Split
from fedsim.data.images import Constants, check_labels, normalize
from fedsim.data.sources import MissingDataError, Remote, Source, Store, read_bytes, user_folder
from fedsim.data.splits import in_order
from fedsim.errors import ConfigError, DataError

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10 = Source(
    title="CIFAR-10",
    origin="https://www.cs.toronto.edu/~kriz/cifar.html, the binary version",
    folder="cifar-10-batches-bin",
    base_url="https://www.cs.toronto.edu/~kriz",
    files=dict.fromkeys(
        [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"],
        Remote("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9dddda3db29a59bca1dd"),
    ),
)


def read_batches(paths: list[Path], label_bytes: int, classes: int | None, mean: Constants, std: Constants) -> Split:
    """Records of some batch files, in order; the last label byte is the label."""
    size, batches = label_bytes + 3072, []
    for path in paths:
        data = np.frombuffer(read_bytes(path), np.uint8)
        if len(data) == 0 or len(data) % size:
            raise DataError(f"{path}: {len(data)} bytes; expected a positive multiple of {size} (truncated?)")
        batches.append(data.reshape(-1, size))
        check_labels(batches[-1][:, label_bytes - 1], len(batches[-1]), classes, path)
    records = np.concatenate(batches)
    labels = check_labels(records[:, label_bytes - 1], len(records), classes, paths[0])
    return Split(normalize(records[:, label_bytes:].reshape(-1, 3, 32, 32), mean, std), labels)


def cifar10(store: Store) -> Dataset:
    """50,000 + 10,000 colour images ``[3, 32, 32]``."""
    paths = list(store.find(CIFAR10).values())
    train, test = (read_batches(part, 1, 10, MEAN, STD) for part in (paths[:5], paths[5:]))
    return Dataset("cifar10", train, test, classes=10, label_names=CIFAR10_LABELS)


def cifar_binary(path: str | Path, *, label_bytes: int = 1, mean: Constants = MEAN, std: Constants = STD) -> Dataset:
    """A folder with ``test*.bin`` and other ``*.bin`` to train on.

    Args:
        path: the folder.
        label_bytes: bytes before each picture, of which the last is its label: 1 as in CIFAR-10; 2 for the fine labels
            of CIFAR-100.
        mean: of the pixels, which lie in [0, 1], of each channel or of all; it is subtracted.
        std: their standard deviation, by which they are then divided.
    """
    if label_bytes not in (1, 2):
        raise ConfigError(f"label_bytes is {label_bytes}; expected 1 (CIFAR-10) or 2 (CIFAR-100)")
    folder = user_folder(path, "a folder of CIFAR binary files")
    found = [p.name for p in folder.iterdir() if p.suffix.lower() == ".bin" and p.name[0] != "."]
    paths = [folder / name for name in in_order(found)]
    parts = [[p for p in paths if p.name.startswith("test") == testing] for testing in (False, True)]
    if not all(parts):
        raise MissingDataError(f"{folder}: found {[p.name for p in paths]}; expected test*.bin and *.bin to train on")
    train, test = (read_batches(part, label_bytes, None, mean, std) for part in parts)
    return Dataset("cifar_binary", train, test, classes=int(max(train.y.max(), test.y.max())) + 1)
