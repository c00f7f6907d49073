"""Objects of other libraries that are no data, or not as they seem: one clear error each, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array

from algorithms import FedAvg
from fedsim import Dataset, Evaluation, Experiment, NaturalIdPartitioner, Split, dataset_of
from fedsim.controller.prepare import prepare
from fedsim.errors import ConfigError, DataError
from tests.data.test_adapters import Pairs, image_folder

N = 12
X, Y = np.random.default_rng(0).random((N, 3)), np.arange(N) % 2
OWNERS = np.arange(N) % 3


def with_nan(array: Any) -> Any:
    array = np.array(array, float)
    array.ravel()[4] = np.nan
    return array


OBJECTS = np.empty(N, object)
OBJECTS[:] = [[1.0] * (2 + k % 2) for k in range(N)]
MISSING = np.array([None, *map(str, Y[1:])], object)
DATES = np.full((N, 2), np.datetime64("2026-01-01"))

CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "layout": ((X, Y), {"layout": "foo"}, "layout is 'foo'; expected one of 'auto', 'HWC', 'CHW'"),
    "no images": ((X, Y), {"layout": "HWC"}, r"layout is 'HWC', and inputs of shape \[3\] are no images; leave it out"),
    "nan targets": ((X, with_nan(Y)), {}, r"y\[4\] is nan; expected a target of each sample: leave those without"),
    "nan inputs": ((with_nan(X), Y), {}, "an input of sample 1 is NaN or infinite; expected finite numbers"),
    "nan clients": ((X, Y, with_nan(OWNERS)), {}, r"client\[4\] is nan; expected a client of each sample"),
    "real clients": ((X, Y, OWNERS + 0.5), {}, "client has the value 0.5; expected whole numbers or names of clients"),
    "clients of two axes": ((X, Y, np.c_[OWNERS, OWNERS]), {}, r"client has shape \[12, 2\]; expected \[N\]"),
    "ragged inputs": (([[1.0] * (2 + k % 2) for k in range(N)], Y), {}, "x has rows of unequal length; expected one"),
    "ragged arrays": (([np.ones(2 + k % 2) for k in range(N)], Y), {}, r"x has rows of the shapes \[2\], \[3\]; exp"),
    "ragged tensors": (([torch.ones(2 + k % 2) for k in range(N)], Y), {}, r"x has rows of the shapes \[2\], \[3\]"),
    "ragged objects": ((OBJECTS, Y), {}, r"x has rows of the shapes \[2\], \[3\]; expected one shape"),
    "mixed objects": ((X, np.array(["a", 1] * 6, object)), {}, "y holds Python objects of the kinds str, int; "),
    "missing objects": ((X, MISSING), {}, "kinds NoneType, str; expected a value for each sample: leave those"),
    "strings": ((np.array([["a", "b"]] * N), Y), {}, "x holds texts such as 'a'; expected numbers: token ids"),
    "dates": ((DATES, Y), {}, "x holds dates"),
    "complex": ((X + 1j, Y), {}, "x holds complex numbers"),
    "sparse": ((csr_array(X), Y), {}, r"x is a sparse csr_array; expected a dense array: x\.toarray\(\)"),
    "sparse tensor": ((torch.eye(N).to_sparse(), Y), {}, r"x is a sparse tensor; expected a dense one"),
    "one axis": ((X[:, 0], Y), {}, r"x has shape \[12\]; expected \[N, \.\.\.\], a row for each sample: x\[:, None\]"),
    "column": ((X, Y[:, None]), {}, r"y has shape \[12, 1\]; expected \[12\]: y\.reshape\(-1\)"),
    "one-hot": ((X, np.eye(2, dtype=int)[Y]), {}, r"have shape \[12, 2\]; expected \[N\], .* one-hot rows y\.argmax"),
    "length": ((X, Y[:-1]), {}, "data has 12 inputs, 11 targets; expected as many of each"),
    "scalar": ((X, np.array(3)), {}, "y is the single value 3; expected"),
    "number": ((X, 3), {}, "y is a int; expected an array, a tensor or a list"),
    "negative tokens": ((np.ones((N, 4), int), np.full((N, 4), -100)), {}, "next tokens from -100 on; expected 0 or"),
    "empty": ((X[:0], Y[:0]), {}, "data has 0 training samples and 0 test samples; expected some"),
    "no items": (Pairs([]), {}, "data is a Pairs without items; expected samples"),
    "texts": (Pairs([("abc", 1)] * N), {}, "inputs are texts such as 'abc'; expected numbers"),
    "zero size": ((np.ones((N, 3, 0, 5), np.uint8), Y), {}, r"inputs of shape \[3, 0, 5\] hold no number"),
    "array": (X, {}, "data is a ndarray; expected a Dataset; .* a DataFrame of pandas; .* lists"),
    "words": ((X, np.array(["a", "b"])[Y]), {"regression": True}, "targets are words such as a, and regression=True"),
    "four": ((X, Y, OWNERS, OWNERS), {}, r"data is a tuple of 4; expected \(x, y\) or \(x, y, client\)"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error_each(name: str) -> None:
    data, options, message = CASES[name]
    with pytest.raises((ConfigError, DataError), match=message):
        dataset_of(data, **options)


def test_both_splits_are_of_one_kind() -> None:
    for test, message in (
        ((X, Y + 0.5), "training and test targets are of the kinds real numbers and whole numbers; expected one"),
        ((X[:0], Y[:0]), "12 training samples and 0 test samples"),
        ((X, Y, OWNERS), "one split has natural clients and the other has none"),
    ):
        with pytest.raises(DataError, match=message):
            dataset_of((X, Y), test)


def test_what_looks_odd_and_is_fine() -> None:
    assert dataset_of((X, np.where(Y, 1, -1))).label_names == ("-1", "1")
    assert dataset_of((X.tolist(), Y.tolist(), OWNERS.astype(float))).client_names == ("0", "1", "2")
    assert dataset_of((X.astype(">f4"), Y.astype(">i8"))).train.x.dtype == torch.float32
    assert dataset_of((X, np.array([b"no", b"yes"])[Y])).label_names == ("no", "yes")
    assert dataset_of(([torch.from_numpy(row) for row in X], np.array([*map(str, Y)], object))).classes == 2
    frozen = X.astype(np.float32)
    frozen.setflags(write=False)
    assert dataset_of((frozen, Y)).input_shape == (3,)
    assert dataset_of((X, np.c_[Y, Y].astype(float))).train.y.shape[1:] == (2,)


def test_targets_of_a_dataset_are_finite_too() -> None:
    x, y = torch.ones(4, 2), torch.tensor([0.0, 1.0, torch.inf, 2.0])
    with pytest.raises(DataError, match="a target is NaN or infinite"):
        Dataset("mine", Split(x, y), Split(x[:1], y[:1]), 0)
    with pytest.raises(DataError, match="pixels are one tensor of uint8"):
        Dataset("mine", Split(x, y[:1].expand(4), None, True), Split(x, y[:1].expand(4), None, True), 0)


def test_clients_with_one_sample_train_and_cannot_withhold() -> None:
    data = dataset_of((X, Y, np.arange(N)), (X, Y, np.arange(N)))
    case = Experiment(FedAvg(), data=data, partition=NaturalIdPartitioner())
    withheld = replace(case, evaluation=Evaluation(holdout=0.2))
    assert prepare(case, 0).federation.shards.sizes.tolist() == [1] * N
    with pytest.raises(ConfigError, match=r"leaves 12 of 12 clients without held-out samples \(the smallest has 1\)"):
        prepare(withheld, 0)


def test_pictures_in_a_folder(tmp_path: Path) -> None:
    mixed = image_folder(tmp_path / "mixed")
    Image.new("L", (6, 5), 200).save(mixed / "a/0.png")
    Image.new("RGBA", (6, 5), (1, 2, 3, 4)).save(mixed / "a/1.png")
    Image.new("1", (6, 5), 1).save(mixed / "b/0.png")
    data = dataset_of(mixed)
    both = torch.cat([data.train.x, data.test.x])
    assert data.input_shape == (3, 5, 6) and (both == 200).all((1, 2, 3)).sum() == 1
    assert (both == 255).all((1, 2, 3)).sum() == 1 and (both[:, :, 0, 0] == torch.tensor([1, 2, 3])).all(1).sum() == 1
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(mixed / "a/2.png")
    with pytest.raises(DataError, match=r"a/2\.png has the mode I;16, of more than 8 bits a channel; expected 8"):
        dataset_of(mixed)


pandas: Any = None


@pytest.fixture
def frame() -> Any:
    global pandas
    pandas = pytest.importorskip("pandas", reason="the extra huggingface is not installed")
    columns = {"age": X[:, 0], "height": X[:, 1], "site": np.array(["b", "a", "c"])[OWNERS], "label": Y}
    return pandas.DataFrame(columns)


def test_frames_of_pandas(frame: Any) -> None:
    data = dataset_of(frame, frame, client="site")
    assert data.feature_names == ("age", "height") and data.client_names == ("a", "b", "c")
    np.testing.assert_allclose(data.train.x, X[:, :2].astype(np.float32))
    assert data.train.client is not None and data.train.client.tolist() == [[1, 0, 2][k] for k in OWNERS]
    words = frame.assign(label=frame["site"].astype("category"))
    assert dataset_of(words, inputs=["height"], target="label").label_names == ("a", "b", "c")
    assert dataset_of(frame, target="age", inputs="height").classes == 0
    series = dataset_of((frame[["height", "age"]], frame["label"], frame["site"]))
    assert series.feature_names == ("height", "age") and series.client_names == ("a", "b", "c")
    assert dataset_of({"train": frame, "test": frame}, client="site").input_shape == (2,)


def test_frames_that_do_not_fit(frame: Any) -> None:
    for data, options, message in (
        (frame, {}, "column 'site' holds str, such as 'b'; expected numbers: encode it"),
        (frame, {"client": "place"}, "there is no column 'place'; known: age, height, site, label"),
        (frame[["age", "site"]], {}, "none of the columns age, site is called label; name the targets"),
        (frame[["label"]], {}, "no column besides 'label'"),
        (frame.assign(age=with_nan(X[:, 0])), {"client": "site"}, "column 'age' has 1 missing values"),
        (frame.assign(label=with_nan(Y)), {"client": "site"}, r"column 'label'\[4\] is nan"),
        (frame, {"tokenize": len}, "tokenize: data is a data frame"),
        (pandas.concat([frame, frame[["age"]]], axis=1), {}, "two columns 'age'"),
        (frame[["age", "label"]][:0], {}, "0 training samples"),
        (frame["age"], {}, "data is a Series; expected a Dataset"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            dataset_of(data, **options)
    with pytest.raises(DataError, match="training and test samples have other columns"):
        dataset_of(frame[["age", "height", "label"]], frame[["height", "age", "label"]])
