"""Damaged files: an error that names the file and what was expected, never a crash or a silent wrong tensor."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.data import MissingDataError, load
from fedsim.errors import DataError
from tests.data.files import (
    idx_bytes,
    write_cifar_folder,
    write_csv_folder,
    write_idx_folder,
    write_jsonl,
    write_leaf,
    write_libsvm,
)


def refuses(match: str, name: str, path: Path, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load(name, path=path, **options)
    assert not isinstance(caught.value, MissingDataError)


@pytest.mark.parametrize(
    ("file", "damage", "match"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], r"135 bytes; expected 136 for IDX shape \[6, 4, 5\]"),
        ("train-images-idx3-ubyte", lambda b: b + b"x", "137 bytes; expected 136"),
        (
            "train-images-idx3-ubyte",
            lambda b: b"PK" + b[2:],
            "train-images.*starts with bytes 50 4b 08 03; expected an IDX magic",
        ),
        ("train-images-idx3-ubyte", lambda b: b"\0\0\x07" + b[3:], "expected an IDX magic"),
        ("train-images-idx3-ubyte", lambda b: b"", "expected an IDX magic"),
        ("train-images-idx3-ubyte", lambda b: b[:6], "6 bytes; expected"),
        ("train-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((0, 4, 5), np.uint8)), r"one for each of 0 images"),
        ("train-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((6, 4), np.uint8)), r"expected bytes \[N, H, W\]"),
        ("t10k-labels-idx1-ubyte", lambda b: idx_bytes(np.zeros(4, np.uint8)), r"shape \[4\]; expected one .* of 3"),
        ("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((3, 9, 9), np.uint8)), r"test inputs \[1, 9, 9\]"),
        ("t10k-writers-idx1-int", lambda b: idx_bytes(np.zeros(2, np.int32)), "expected one writer for each of 3"),
    ],
)
def test_idx(tmp_path: Path, file: str, damage: Callable[[bytes], bytes], match: str) -> None:
    write_idx_folder(tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    refuses(match, "idx", tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b[:30] + b"\xff" * 9 + b[39:], lambda b: b"no gzip"])
def test_gzip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_idx_folder(tmp_path, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    refuses(r"train-images-idx3-ubyte\.gz: cannot be read.*intact", "idx", tmp_path)


def test_cifar(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refuses(r"data_batch_2\.bin: 9218 bytes; expected a positive multiple of 3073", "cifar_binary", tmp_path)
    path.write_bytes(b"")
    refuses(r"data_batch_2\.bin: 0 bytes", "cifar_binary", tmp_path)


def test_cifar10_label(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(2 * 3073))
    load("cifar10", tmp_path)
    (folder / "data_batch_3.bin").write_bytes(bytes(3073) + b"\x0a" + bytes(3072))
    with pytest.raises(DataError, match=r"data_batch_3\.bin: image 1 has label 10; expected 0 to 9"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x,y\n1,0\n1,2,3\n", r"bad\.csv, line 3: 3 cells; expected 2"),
        ("x,y\n1,0\n1\n", r"bad\.csv, line 3: 1 cell; expected 2"),
        ("x,y\n1,0\nred,1\n", r"bad\.csv, line 3, column 'x': 'red' is not a number"),
        ("x,y\n1,0\ninf,1\n", "line 3, column 'x': 'inf' is not finite"),
        ("x,y\n1,\n", r"line 2: no label in column 'y'"),
        ("", "is empty; expected a header line"),
        ("x,y\n", "1 line; expected a header line"),
        ('x,y\n1,"0\n', r"bad\.csv"),
    ],
)
def test_csv(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    refuses(match, "csv", tmp_path)


def test_csv_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,z,y\n1,2,0\n")
    (tmp_path / "b.csv").write_text("z,x,y\n1,2,0\n")
    refuses(r"b\.csv: features \['z', 'x'\]; expected \['x', 'z'\], as in a\.csv", "csv", tmp_path)
    refuses(r"has no column 'num' with the label; ", "csv", tmp_path, target="num")
    (tmp_path / "a.csv").write_bytes(b"x,y\n\xff,1\n")
    refuses(r"a\.csv: .*expected UTF-8", "csv", tmp_path)


@pytest.mark.parametrize(
    "line",
    ['{"client": "a", "text": "b"', '{"client": "a"}', '["a", "b"]', '{"client": "a", "text": 3}', "[" * 100_000],
)
def test_jsonl(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"client": "a", "text": "b"}\n\n' + line + "\n")
    refuses(r"bad\.jsonl, line 3: ", "jsonl", path)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, r"y \[4\] does not fit x \[3, 2\]"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 1), int)}, r"y \[3, 1\] does not fit"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3, int), "client": np.zeros(2, int)}, r"client \[2\] does not fit"),
        ({"x": np.zeros(()), "y": np.zeros((), int)}, "does not fit"),
        ({"x": np.zeros((3, 2))}, "no array y; expected x and y"),
        ({"x": np.array([{}, None, 3]), "y": np.zeros(3, int)}, "not a readable .npz of plain arrays"),
        ({"x": np.full((5, 2), np.nan), "y": np.zeros(5, int)}, r"x\[0, 0\] is nan; expected finite"),
        ({"x": np.zeros((5, 2), complex), "y": np.zeros(5, int)}, "x has type complex128"),
        ({"x": np.zeros((5, 2)), "y": np.zeros(5, int), "client": np.zeros(5)}, "client has type float64"),
        ({"x": np.zeros((5, 2)), "y": np.arange(5), "label_names": np.array(["a"])}, "positions in label_names"),
        ({"x": np.zeros((5, 2)), "y": np.arange(5), "client": np.arange(5), "test_clients": [9]}, "0 of 5 samples"),
        ({"x": np.zeros((5, 2)), "y": np.arange(5), "x_test": np.zeros((5, 2))}, "no array y_test"),
        (
            {"x": np.zeros((5, 2)), "y": np.arange(5), "x_test": np.zeros((5, 3)), "y_test": np.arange(5)},
            "expected samples of the same shape",
        ),
    ],
)
def test_npz(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    refuses(rf"bad\.npz: .*{match}", "npz", path)


def test_npz_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, x=np.zeros((50, 2)), y=np.zeros(50, int))
    whole = path.read_bytes()
    for content in (b"", b"not an archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        refuses(r"bad\.npz: not a readable", "npz", path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refuses(r"bad\.npz: not a readable", "npz", path)


@pytest.mark.parametrize("text", ["1 1:2 x\n", "1 1:a\n", "1 0:2\n", "", "one 1:2\n", "1 2:1 2:1\n", "nan 1:1\n"])
def test_libsvm(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    refuses("bad.*expected", "libsvm", path)


def test_libsvm_too_wide(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_text("1 2000000000:1\n0 1:1\n")
    refuses("2 samples x 2000000000 features; expected at most 8 GiB", "libsvm", path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "idx": write_idx_folder,
    "cifar_binary": write_cifar_folder,
    "csv": write_csv_folder,
    "jsonl": write_jsonl,
    "leaf": write_leaf,
    "libsvm": write_libsvm,
    "npz": lambda path: np.savez(path, x=np.zeros((9, 2)), y=np.arange(9) % 2, client=np.arange(9) % 3),
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_bytes_load_or_are_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / ("own.npz" if name == "npz" else "own")
    WRITERS[name](path)
    options = {"sequence_length": 9} if name == "jsonl" else {}
    load(name, path=path, **options)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    file.write_bytes(content)
    with contextlib.suppress(DataError):
        loaded = load(name, path=path, **options)
        assert len(loaded.train.x) == len(loaded.train.y) > 0


def test_gzip_is_recognised_by_its_name(tmp_path: Path) -> None:
    write_idx_folder(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes()))
    refuses("expected an IDX magic", "idx", tmp_path)
