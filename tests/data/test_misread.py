"""Files that parse as something else than they are: refused with file, line or column and the fix, or reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Data, Experiment, run
from fedsim.controller.loading import resolve_data
from fedsim.data import MissingDataError, load
from fedsim.errors import DataError
from fedsim.partition import NaturalIdPartitioner
from tests.data.files import idx_bytes, write_csv_folder, write_idx_folder, write_leaf, write_libsvm

ROWS = "".join(f"{i * 7 % 5},{i % 3}.5,{i % 2}\n" for i in range(20))


def refuses(match: str, name: str, path: Path, kind: type[DataError] = DataError, **options: Any) -> None:
    with pytest.raises(kind, match=match):
        load(name, path=path, **options)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("age,bmi,ill\n".replace(",", ";") + ROWS.replace(",", ";"), "line 1: columns are separated by semicolons"),
        (f"age,bmi,ill\n{ROWS}".replace(",", "\t"), r"separated by tabs \('\\t'\); expected commas.*sep='\\t'"),
        ("age;bmi;ill\n20;20,5;1\n", "line 1: columns are separated by semicolons"),
        (ROWS, "line 1: column 1 is named '0', a number; expected a header line"),
        ("age,,ill\n" + ROWS, "line 1: column 2 has no name"),
        (",age,ill\n" + ROWS, r"column 1 has no name.*row index.*to_csv\(path, index=False\)"),
        ("age,age,ill\n" + ROWS, "line 1: columns 1 and 2 are both named 'age'"),
        ("ill\n1\n0\n", "columns ill; expected at least one feature column"),
        ("age bmi ill\n1 2 0\n", "columns age bmi ill; expected at least one feature column.*commas"),
        ("id,a,ill\n" + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(9)), "column 'id': a different value in"),
        ("Unnamed: 0,a,ill\n0,1,0\n1,1,1\n", "column 'Unnamed: 0': a different value in each row"),
        ('a,b,ill\n"20,5",1,0\n', "line 2, column 'a': '20,5' is not a number.*decimals with a point"),
        ("a,b,ill\n1_000,1,0\n", "line 2, column 'a': '1_000' is not a number"),
        ("a,b,age\n" + "".join(f"1,{i % 2},{i}\n" for i in range(40)), "40 different numbers as labels.*regression"),
        ("a,b,name\n" + "".join(f"1,2,p{i}\n" for i in range(40)), "40 different words as labels of 40.*target column"),
        ("a,b,ill\n1,2,yes\n1,2,1\n", r"labels are numbers and words, such as '1' \(own.csv, line 3\) and 'yes'"),
        ("a,b,ill\n1,2,yes\n1,2,Yes\n", r"'yes' \(own.csv, line 2\) and 'Yes' \(own.csv, line 3\) differ in upper and"),
        ("a,b,ill\n1,2,1e300\n1,2,1\n", "label 1e.300 is too large"),
    ],
)
def test_csv(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "own.csv").write_text(text)
    refuses(rf"own\.csv.*{match}", "csv", tmp_path)


def test_labels_agree_between_files(tmp_path: Path) -> None:
    for name, label in (("a", "1"), ("b", "1.0"), ("c", "0")):
        (tmp_path / f"{name}.csv").write_text("x,ill\n" + f"1,{label}\n" * 6)
    assert load("csv", path=tmp_path).label_names == ("0", "1")
    (tmp_path / "d.csv").write_text("x,ill\n" + "1,yes\n" * 6)
    refuses(r"such as '1' \(a.csv, line 2\) and 'yes' \(d.csv, line 2\)", "csv", tmp_path)
    refuses(r"'yes' \(d.csv, line 2\) is not a number", "csv", tmp_path, regression=True)


def test_csv_names_of_files(tmp_path: Path) -> None:
    """Any case, packed or not; other files are named, hidden ones skipped, and numbers in names are numbers."""
    for i in (1, 2, 10, 11):
        (tmp_path / f"hospital_{i}.{'CSV' if i % 2 else 'csv'}").write_text("age,bmi,ill\n" + ROWS)
    (tmp_path / "._hospital_1.csv").write_bytes(b"\0\xff")
    (tmp_path / "hospital_12.tsv").write_text("age\tbmi")
    data = load("csv", path=tmp_path)
    assert data.client_names == ("hospital_1", "hospital_2", "hospital_10", "hospital_11")
    assert data.feature_names == ("age", "bmi")
    assert data.notes == (
        f"csv {tmp_path}: 64 training and 16 test samples, 2 features (age, bmi), 2 classes (0, 1), 4 clients"
        " (hospital_1, hospital_2, hospital_10, hospital_11); files ignored: hospital_12.tsv"
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.xlsx").touch()
    refuses(r"no \*.csv \(found a.xlsx\); expected a folder", "csv", tmp_path / "none", MissingDataError)


def test_one_csv_file(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text("age,bmi,ill\n" + ROWS)
    data = load("csv", path=file)
    assert data.client_names is None and data.input_shape == (2,) and "no natural clients" in data.notes
    sites = "".join(f"{i % 5},site {i % 12},{i % 2}\n" for i in range(96))
    file.write_text("age,client,ill\n" + sites)
    data = load("csv", path=file, client="client")
    assert data.client_names == tuple(f"site {i}" for i in range(12)) and data.feature_names == ("age",)
    file.write_text("age,client,ill\n" + sites.replace("site ", ""))
    refuses("all.csv: column 'client' would be a feature; set --data.client client", "csv", file)
    refuses("has no column 'site' with the client; ", "csv", file, client="site")
    file.write_text("age,client,ill\n1,,0\n")
    refuses("line 2: no client in column 'client'", "csv", file, client="client")
    file.write_text("ill,client\n1,a\n")
    refuses("at least one feature", "csv", file, client="client")


NPZ: dict[str, Any] = {"x": np.ones((30, 4), np.float32), "y": np.arange(30) % 2}


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.zeros((30, 0))}, r"x \[30, 0\] has no feature"),
        ({"x": np.zeros(30)}, r"x \[30\] has no feature; expected \[N, ...\], such as x\[:, None\]"),
        ({"x": np.ones((30, 4), np.uint8)}, r"x is uint8 \(pixels, divided by 255\), x_test float32 \(real numbers\)"),
        ({"x": np.ones((30, 4), int)}, r"x is int64 \(whole numbers\), x_test float32"),
        ({"x": np.full((30, 4), 255.0)}, "x reaches 255, x_test 1; expected the same unit"),
        ({"y_test": np.full(30, 0.5)}, r"y is int64 \(whole numbers\), y_test float64 \(real numbers\)"),
        ({"y_test": np.full(30, "cat")}, r"y_test <U3 \(strings\); expected the same type"),
        ({"client": np.arange(30), "client_test": np.full(30, "a")}, "client is int64"),
        ({"client": np.arange(30), "test_clients": np.arange(3)}, "both test_clients and x_test"),
        ({"client_test": np.arange(30)}, "client_test without client"),
        ({"x_test": None}, "y_test without x_test, so it would be ignored"),
        ({"x_test": None, "y_test": None, "test_clients": np.arange(3)}, "test_clients without client"),
        ({"y": np.arange(30), "x_test": None, "y_test": None}, r"30 different numbers as labels.*y.astype\(float\)"),
    ],
)
def test_npz(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    path = tmp_path / "own.npz"
    whole = {**NPZ, "x_test": NPZ["x"], "y_test": NPZ["y"], **arrays}
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})
    refuses(rf"own\.npz: .*{match}", "npz", path)


def test_npz_arrays_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **NPZ, x_val=np.ones((3, 4)))
    data = load("npz", path=path)
    expected = "inputs [4] of real numbers, 2 classes (0, 1), no natural clients; arrays ignored: x_val"
    assert data.notes.endswith(expected)
    refuses("a folder; expected an .npz", "npz", tmp_path, MissingDataError)


def test_names_in_natural_order(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    names = np.array([f"c{i}" for i in range(12)] * 4)
    np.savez(path, x=np.ones((48, 2)), y=names, client=names)
    data = load("npz", path=path, test_fraction=0.5)
    assert data.client_names == data.label_names == tuple(f"c{i}" for i in range(12))
    assert data.train.client is not None and data.train.y.tolist() == data.train.client.tolist()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1 0:1 1:2\n-1 1:2\n", "line 1: index 0; expected indices from 1; if.*--data.zero_based true"),
        ("1 1:1\n-1 1:2 -3:1\n", "line 2: index -3; expected indices from 1$"),
        ("1 1:1\n\n# no\n-1 1:2 1:1\n", "line 4: index 1 twice"),
        ("1,0.5,2\n", "line 1: '1,0.5,2' is not the label"),
        ("1 1:1\n1 0.5 2\n", "line 2: '0.5' is not an entry index:value"),
        ("1 1:1\n1 1:nan\n", "line 2: '1:nan' is not finite"),
        ("1\n0\n", "2 samples without features"),
    ],
)
def test_libsvm(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "own"
    path.write_text(text)
    refuses(f"own.*{match}", "libsvm", path)


def test_libsvm_unsorted_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "own"
    write_libsvm(path)
    expected = load("libsvm", path=path)
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("\ufeff" + "\n".join(" ".join([label, *reversed(pairs)]) for label, *pairs in lines))
    data = load("libsvm", path=path)
    assert torch.equal(data.train.x, expected.train.x) and torch.equal(data.test.y, expected.test.y)
    assert "no sample uses index 0: does the file count from 1?" in load("libsvm", path=path, zero_based=True).notes
    (tmp_path / "other").write_text("0 1:1\n1 1:2\n")
    assert "in the test samples alone: 0;" in load("libsvm", path=path, test_path=tmp_path / "other").notes + ";"
    refuses("a folder; expected LIBSVM text", "libsvm", tmp_path, MissingDataError)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"user": "a", "text": "b"}', 'line 2: keys user, text; expected {"client"'),
        ('["a", "b"]', "line 2: a list; expected"),
        ('{"client": true, "text": "b"}', "line 2: expected client as a string"),
        ('{"client": 1, "text": "b"}', "line 2: client 1 is a int, unlike that of line 1"),
        ('{"users": [], "user_data": {}}', "line 2: this is LEAF's JSON; read it with --data leaf"),
    ],
)
def test_jsonl(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('\ufeff{"client": "a", "text": "b"}\n' + line + "\n")
    refuses(rf"own\.jsonl, {match}", "jsonl", path)
    refuses("a folder; expected lines", "jsonl", tmp_path, MissingDataError)


@pytest.mark.parametrize(
    ("file", "array", "match"),
    [
        ("train-labels-idx1-ubyte", np.full(6, 0.5, np.float32), "labels of type float32"),
        ("train-writers-idx1-int", np.full(6, 0.5, np.float32), "writers of type float32"),
        ("train-images-idx3-ubyte", np.zeros((6, 0, 5), np.uint8), "at least one pixel"),
        ("train-writers-idx1-int", None, "t10k-writers-idx1-int: the writers of one split alone"),
        ("train-labels-idx1-ubyte", None, "found t10k-images-idx3-ubyte, t10k-labels"),
    ],
)
def test_idx(tmp_path: Path, file: str, array: Any, match: str) -> None:
    write_idx_folder(tmp_path)
    (tmp_path / file).unlink() if array is None else (tmp_path / file).write_bytes(idx_bytes(array))
    refuses(match, "idx", tmp_path)
    for name in ("idx", "cifar_binary"):
        refuses("a file; expected a folder", name, tmp_path / "t10k-images-idx3-ubyte", MissingDataError)


def test_leaf(tmp_path: Path) -> None:
    write_leaf(tmp_path / "all_data_0.json")
    data = load("leaf", path=tmp_path / "all_data_0.json", test_fraction=0.5)
    assert data.client_names == ("f2", "f10") and data.classes == 2 and data.input_shape == (3,)
    assert len(data.train.y) == len(data.test.y) == 6 and data.train.client is not None
    assert data.train.x[:, 2].tolist() == data.train.client.tolist()
    write_leaf(tmp_path / "all_data_1.json", ["f1"])
    assert load("leaf", path=tmp_path).client_names == ("f1", "f2", "f10")
    assert load("leaf", path=tmp_path, shape=[1, 3]).input_shape == (1, 3)
    write_leaf(tmp_path / "all_data_2.json", ["f1"])
    refuses(r"all_data_2\.json: user 'f1' is in an earlier file", "leaf", tmp_path)
    for part, samples in (("train", 6), ("test", 3)):
        (tmp_path / "split" / part).mkdir(parents=True)
        write_leaf(tmp_path / "split" / part / "data.json", samples=samples)
    data = load("leaf", path=tmp_path / "split")
    assert len(data.train.y) == 12 and len(data.test.y) == 6 and data.client_names == ("f2", "f10")
    refuses("leave it out", "leaf", tmp_path / "split", test_fraction=0.1)
    refuses(r"none: no such file or folder", "leaf", tmp_path / "none", MissingDataError)


def test_leaf_texts(tmp_path: Path) -> None:
    text = "to be or not to be, that is the question"
    samples = [(text[i : i + 8], text[i + 8]) for i in range(20)]
    data = {"x": [x for x, _ in samples], "y": [y for _, y in samples]}
    (tmp_path / "a.json").write_text(json.dumps({"users": ["h"], "num_samples": [20], "user_data": {"h": data}}))
    loaded = load("leaf", path=tmp_path)
    assert loaded.input_shape == (8,) and loaded.classes == len(set(text[:28])) and loaded.label_names is not None
    pairs = {
        "".join(loaded.label_names[k] for k in [*x, y[-1]]) for x, y in zip(loaded.train.x, loaded.train.y, strict=True)
    }
    assert pairs < {x + y for x, y in samples} and torch.equal(loaded.train.x[:, 1:], loaded.train.y[:, :-1])


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_leaf(path)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("user_data"), "no object user_data"),
        (lambda c: c["users"].append("x"), "users are not those of user_data"),
        (lambda c: c.update(num_samples=[6]), "num_samples does not have a number for each of 2"),
        (lambda c: c.update(num_samples=[6, 7]), "user 'f10' has 6 samples x, 6 targets y and num_samples 7"),
        (lambda c: c["user_data"]["f2"]["x"].pop(), "user 'f2' has 5 samples"),
        (lambda c: c["user_data"]["f2"]["x"].__setitem__(1, [1]), "are not arrays of numbers of one shape"),
        (lambda c: c["user_data"]["f2"]["x"].__setitem__(0, "a text"), "y 0; expected texts"),
        (lambda c: c["user_data"]["f2"]["y"].__setitem__(1, "cat"), "targets y such as 0 and 'cat'"),
        (lambda c: c["user_data"]["f2"]["y"].__setitem__(1, 0.5), "label 0.5 is not a whole number"),
    ],
)
def test_leaf_that_is_damaged(tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str) -> None:
    path = tmp_path / "own.json"
    _changed(change)(path)
    refuses(rf"own\.json.*{match}", "leaf", path)


def test_a_dataset_without_a_feature_is_refused() -> None:
    from fedsim.data import Dataset, Split

    split = Split(torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"inputs of shape \[0\] hold no number"):
        Dataset("none", split, split, 2)


def test_a_run_reports_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in (1, 2, 10):
        write_csv_folder(tmp_path / "data")
        (tmp_path / "data" / "b.csv").rename(tmp_path / "data" / f"h{i}.csv")
    (tmp_path / "data" / "a.csv").unlink()
    from algorithms import FedAvg

    data = Data("csv", options={"path": str(tmp_path / "data")})
    made = run(Experiment(FedAvg(), data=data, partition=NaturalIdPartitioner(), rounds=1), output=tmp_path / "run")
    expected = "2 features (age, dose), 2 classes (0, 1), 3 clients (h1, h2, h10)"
    assert [line for line in capsys.readouterr().err.splitlines() if expected in line]
    assert expected in made.manifest["data_notes"] and made.manifest["client_names"] == ["h1", "h2", "h10"]
    run(Experiment(FedAvg(), rounds=1), output=tmp_path / "digits")
    assert "1,437" not in capsys.readouterr().err


def test_a_file_that_changed_in_its_folder_is_read_again(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    data = Data("csv", options={"path": str(tmp_path)})
    first = resolve_data(data)
    assert resolve_data(data) is first
    with (tmp_path / "a.csv").open("a") as file:
        file.write("1,2,1\n" * 5)
    assert resolve_data(data) is not first
