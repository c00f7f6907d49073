"""Tiny files of every format, written by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

IDX_CODES = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    head = bytes([0, 0, IDX_CODES[array.dtype.name], array.ndim])
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx_folder(folder: Path, train: int = 6, test: int = 3, gz: bool = False, writers: bool = True) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        arrays = {
            "images-idx3-ubyte": rng.integers(0, 256, (n, 4, 5), dtype=np.uint8),
            "labels-idx1-ubyte": np.arange(n, dtype=np.uint8) % 3,
        }
        if writers:
            arrays["writers-idx1-int"] = np.arange(n, dtype=np.int32) // 2 * 100 + (7 if part == "t10k" else 0)
        for kind, array in arrays.items():
            data = idx_bytes(array)
            (folder / f"{part}-{kind}{'.gz' if gz else ''}").write_bytes(gzip.compress(data) if gz else data)


def write_cifar_folder(folder: Path, label_bytes: int = 1) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in (("data_batch_1.bin", 4), ("data_batch_2.bin", 3), ("test_batch.bin", 2)):
        records = rng.integers(0, 256, (n, label_bytes + 3072), dtype=np.uint8)
        records[:, :label_bytes] = np.arange(n)[:, None] % 4 + np.arange(label_bytes) * 10
        (folder / name).write_bytes(records.tobytes())


def write_csv_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, shift in (("b", 12, 0), ("a", 20, 3)):
        rows = [f"{i + shift},{'' if i % 4 == 1 else 10 * i},{i % 2}" for i in range(n)]
        (folder / f"{name}.csv").write_text("\n".join(["age,dose,ill", *rows]) + "\n")


def write_jsonl(path: Path) -> None:
    entries = [("hamlet", "to be or not to be, that is " * 4), ("echo", "echo " * 10), ("mute", "o"), ("echo", "ECHO")]
    path.write_text("".join(json.dumps({"client": client, "text": text}) + "\n" for client, text in entries))


def write_libsvm(path: Path) -> None:
    path.write_text("".join(f"{'+1' if i % 3 else '-1'} 1:{i} {2 + i % 4}:0.5\n" for i in range(30)))


def write_leaf(path: Path, users: Iterable[str] = ("f2", "f10"), samples: int = 6) -> None:
    data = {user: {"x": [[i, 0.5, k] for i in range(samples)], "y": [i % 2 for i in range(samples)]}
            for k, user in enumerate(users)}  # fmt: skip
    content = {"users": list(data), "num_samples": [samples] * len(data), "user_data": data}
    path.write_text(json.dumps(content))
