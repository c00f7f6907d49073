"""A user's own files: what was written is what is loaded."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data import load
from fedsim.data.idx import read_idx
from fedsim.errors import ConfigError, DataError
from tests.data.files import (
    idx_bytes,
    write_cifar_folder,
    write_csv_folder,
    write_idx_folder,
    write_jsonl,
    write_libsvm,
)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_idx_array_round_trip(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(24) * 5).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx_bytes(array)))
    for name in ("a", "a.gz"):
        read = read_idx(tmp_path / name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("gz", [False, True])
def test_idx_folder(tmp_path: Path, gz: bool) -> None:
    write_idx_folder(tmp_path, gz=gz)
    data = load("idx", path=tmp_path, mean=0.25, std=0.5)
    raw = read_idx(tmp_path / ("t10k-images-idx3-ubyte" + (".gz" if gz else "")))
    assert data.train.x.shape == (6, 1, 4, 5)
    torch.testing.assert_close(data.test.x[:, 0], (torch.from_numpy(raw).float() / 255 - 0.25) / 0.5)
    assert data.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == 3
    # Owners of training samples come first, then those with test samples only.
    assert data.client_names == ("0", "100", "200", "7", "107")
    assert data.train.client is not None and data.train.client.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.client is not None and data.test.client.tolist() == [3, 3, 4]


def test_idx_folder_without_writers(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, writers=False)
    data = load("idx", path=str(tmp_path))
    assert data.client_names is None and data.train.client is None
    assert data.train.x.min() >= 0 and data.train.x.max() <= 1


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_folder(tmp_path: Path, label_bytes: int) -> None:
    write_cifar_folder(tmp_path, label_bytes)
    data = load("cifar_binary", path=tmp_path, label_bytes=label_bytes, mean=0, std=1)
    assert data.train.x.shape == (7, 3, 32, 32) and data.test.x.shape == (2, 3, 32, 32)
    first = 10 * (label_bytes - 1)
    assert data.train.y.tolist() == [first + k for k in (0, 1, 2, 3, 0, 1, 2)]
    record = np.frombuffer((tmp_path / "data_batch_2.bin").read_bytes(), np.uint8)[label_bytes : label_bytes + 3072]
    torch.testing.assert_close(data.train.x[4].flatten(), torch.from_numpy(record.copy()).float() / 255)


def test_image_constants_are_checked(tmp_path: Path) -> None:
    write_cifar_folder(tmp_path)
    for wrong in ({"mean": [0.5, 0.5]}, {"std": 0.0}, {"std": [1.0, 1.0, -1.0]}):
        with pytest.raises(ConfigError, match="3 channels"):
            load("cifar_binary", path=tmp_path, **wrong)


def test_npz_test_clients(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(8, 3)
    client = np.array(["eve", "ann", "bob", "ann", "eve", "bob", "bob", "zoe"])
    path = tmp_path / "own.npz"
    np.savez(path, x=x, y=np.array([5, 9] * 4), client=client, test_clients=np.array(["bob", "eve"]))
    data = load("npz", path=path)
    assert data.client_names == ("ann", "zoe", "bob", "eve")
    torch.testing.assert_close(data.train.x, torch.tensor(x[[1, 3, 7]], dtype=torch.float32))
    assert data.train.y.tolist() == [1, 1, 1] and data.label_names == ("5", "9")
    assert data.test.client is not None and data.test.client.tolist() == [3, 2, 3, 2, 2]
    both = load("npz", path=path, test_fraction=0.5)
    assert len(both.train.y) == len(both.test.y) == 4


def test_npz_own_test_split(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    arrays = {"x": np.full((3, 2, 2), 51, np.uint8), "y": np.array(["cat", "dog", "cat"]), "client": np.arange(3)}
    np.savez(path, **arrays, x_test=np.zeros((2, 2, 2), np.uint8), y_test=np.array(["dog", "emu"]))
    data = load("npz", path=path)
    assert data.train.x.dtype == torch.uint8 and data.train.pixels and data.test.pixels
    seen = data.train.to(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(seen.x, torch.full((3, 2, 2), 0.2))
    assert data.test.y.tolist() == [1, 2] and data.label_names == ("cat", "dog", "emu")
    assert data.train.client is not None and data.test.client is None
    with pytest.raises(ConfigError, match="own x_test"):
        load("npz", path=path, test_fraction=0.5)
    np.savez(path, **arrays, x_test=np.zeros((2, 2, 2), np.uint8), y_test=np.array(["dog", "emu"]), client_test=[2, 7])
    data = load("npz", path=path)
    assert data.test.client is not None and data.test.client.tolist() == [2, 3]


def test_npz_targets_and_tokens(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, x=np.arange(20, dtype=np.int32).reshape(10, 2), y=np.linspace(0, 1, 10))
    data = load("npz", path=path)
    assert data.classes == 0 and data.train.y.dtype == torch.float32 and data.train.x.dtype == torch.int64
    np.savez(path, x=np.zeros((10, 2)), y=np.arange(10) % 2, label_names=np.array(["no", "yes", "never"]))
    assert load("npz", path=path).classes == 3


def test_csv_folder(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    data = load("csv", path=tmp_path, test_fraction=0.25, standardize=False)
    assert data.client_names == ("a", "b") and data.label_names == ("0", "1")
    assert len(data.train.y) == 24 and len(data.test.y) == 8
    # A quarter of each class of each client is held out, to within one row.
    assert data.test.client is not None
    counts = np.unique(np.stack([data.test.client, data.test.y.numpy()]), axis=1, return_counts=True)[1]
    np.testing.assert_array_less(np.abs(counts - np.array([2.5, 2.5, 1.5, 1.5])), 1.01)
    assert not torch.isnan(data.train.x).any()


def test_csv_missing_values_become_the_training_mean(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    raw = load("csv", path=tmp_path, standardize=False)
    scaled = load("csv", path=tmp_path)
    torch.testing.assert_close(scaled.train.x.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    filled = scaled.test.x[:, 1] == 0
    assert filled.any()
    known = raw.train.x[:, 1][scaled.train.x[:, 1] != 0]
    torch.testing.assert_close(raw.test.x[:, 1][filled], known.mean().expand(int(filled.sum())))


def test_csv_target_column(tmp_path: Path) -> None:
    for name in ("p", "q"):
        text = "".join(f"{'yes' if i % 2 else 'no'},{i}\r\n" for i in range(10))
        (tmp_path / f"{name}.csv").write_bytes(b"\xef\xbb\xbflabel,value\r\n" + text.encode())
    data = load("csv", path=tmp_path, target="label")
    assert data.label_names == ("no", "yes") and data.train.x.shape == (16, 1)
    with pytest.raises(DataError, match="'no' is not a number"):
        load("csv", path=tmp_path, target="value")


def test_clients_are_named_as_their_files_but_for_the_csv(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"site.{i}.csv").write_text("a,b\n" + "1,0\n2,1\n" * 5)
    assert load("csv", path=tmp_path).client_names == ("site.0", "site.1", "site.2")


def test_csv_regression(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a,b\n" + "".join(f"{i},{i / 4}\n" for i in range(10)))
    data = load("csv", path=tmp_path, regression=True)
    assert data.classes == 0 and data.label_names is None
    assert sorted([*data.train.y.tolist(), *data.test.y.tolist()]) == [i / 4 for i in range(10)]
    with pytest.raises(DataError, match=r"'0.25' \(one.csv, line 3\) is not a whole number.*--data.regression true"):
        load("csv", path=tmp_path)


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    write_jsonl(path)
    data = load("jsonl", path=path, sequence_length=9, test_fraction=0.25)
    assert data.client_names == ("hamlet", "echo")  # one character is no window
    assert data.label_names is not None and list(data.label_names) == sorted(data.label_names)
    assert data.classes == len(data.label_names) == len(set("to be or not to be, that is echo ECHO \n"))
    assert data.train.x.dtype == data.train.y.dtype == torch.int64
    texts = {"hamlet": "to be or not to be, that is " * 4, "echo": "echo " * 10 + "\nECHO"}
    for k, name in enumerate(data.client_names):
        parts = (data.train, data.test)
        x, y = (torch.cat([s[i][torch.from_numpy(s.client == k)] for s in parts]).flatten() for i in (0, 1))
        assert "".join(data.label_names[t] for t in x) == texts[name][: len(x)]
        assert "".join(data.label_names[t] for t in y) == texts[name][1 : len(x) + 1]
        assert len(texts[name]) - len(x) <= 9
        windows = len(x) // 9
        assert (parts[1].client == k).sum() == int(windows * 0.25)


def test_jsonl_min_chars_keeps_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    write_jsonl(path)
    every, some = (load("jsonl", path=path, sequence_length=5, min_chars=m) for m in (0, 100))
    assert some.client_names == ("hamlet",) and some.label_names == every.label_names
    with pytest.raises(DataError, match="min_chars"):
        load("jsonl", path=path, min_chars=1000)
    for wrong in ({"sequence_length": 0}, {"test_fraction": 1.0}):
        with pytest.raises(ConfigError):
            load("jsonl", path=path, **wrong)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
def test_libsvm(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "plain"
    write_libsvm(path)
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    packed = tmp_path / f"data{suffix}"
    packed.write_bytes(pack(path.read_bytes()))
    data = load("libsvm", path=packed)
    assert data.train.x.shape == (24, 5) and data.test.x.shape == (6, 5)
    assert data.label_names == ("-1", "1") and data.test.y.tolist().count(0) == 2
    x, y = torch.cat([data.train.x, data.test.x]), torch.cat([data.train.y, data.test.y])
    order = x[:, 0].argsort()
    assert x[order, 0].tolist() == list(range(30))
    assert y[order].tolist() == [int(i % 3 > 0) for i in range(30)]
    assert x[order][6].tolist() == [6, 0, 0, 0.5, 0]


def test_libsvm_with_a_test_file_of_fewer_features(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("1 1:1 4:2\n2 2:1\n")
    (tmp_path / "test").write_text("3 1:5\n")
    data = load("libsvm", path=tmp_path / "train", test_path=tmp_path / "test")
    assert data.test.x.tolist() == [[5, 0, 0, 0]] and data.test.y.tolist() == [2] and data.classes == 3
    assert load("libsvm", path=tmp_path / "train", test_path=tmp_path / "test", n_features=7).input_shape == (7,)


def test_libsvm_options(tmp_path: Path) -> None:
    path = tmp_path / "zero"
    path.write_text("".join(f"{i / 8} 0:{i} 1:7\n" for i in range(16)))
    data = load("libsvm", path=path, zero_based=True, regression=True, standardize=True)
    assert data.classes == 0 and data.input_shape == (2,)
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train.x.var(0, correction=0), torch.tensor([1.0, 0.0]))
    with pytest.raises(DataError, match="indices from 1"):
        load("libsvm", path=path, regression=True)
