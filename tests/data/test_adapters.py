"""Samples of other libraries as data sets: arrays, PyTorch, folders of images and, where installed, Hugging Face."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from algorithms import FedAvg
from fedsim import Execution, Experiment, IidPartitioner, dataset_of, run
from fedsim.errors import ConfigError, DataError, PartitionError
from fedsim.partition import FlowerPartitioner

N = 40
Y = np.arange(N) % 4
rng = np.random.default_rng(0)


def pictures(*shape: int) -> Any:
    return rng.integers(0, 256, (N, *shape), dtype=np.uint8)


@pytest.mark.parametrize(
    ("x", "options", "shape"),
    [
        (pictures(6, 5, 3), {}, (3, 6, 5)),
        (pictures(3, 6, 5), {}, (3, 6, 5)),
        (pictures(6, 5), {}, (1, 6, 5)),
        (pictures(6, 5, 1), {}, (1, 6, 5)),
        (pictures(3, 5, 3), {"layout": "HWC"}, (3, 3, 5)),
        (pictures(3, 5, 3), {"layout": "CHW"}, (3, 5, 3)),
        (rng.random((N, 6, 5, 3)), {}, (3, 6, 5)),
        (rng.random((N, 7)), {}, (7,)),
        (rng.random((N, 7, 2)).astype(np.float16), {}, (7, 2)),
        (rng.integers(0, 50, (N, 7), dtype=np.int32), {}, (7,)),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_arrays_of_every_layout(x: Any, options: Any, shape: tuple[int, ...]) -> None:
    data = dataset_of((x, Y), **options)
    assert data.input_shape == shape and data.classes == 4 and (len(data.train.y), len(data.test.y)) == (32, 8)
    both, whole = torch.cat([data.train.x, data.test.x]), x.dtype == np.uint8
    kinds = {np.uint8: torch.uint8, np.int32: torch.int64, np.float64: torch.float64}
    assert both.dtype == kinds.get(x.dtype.type, torch.float32) and data.train.pixels == data.test.pixels == whole
    given = torch.cat([half.to(torch.device("cpu"), torch.float64).x for half in (data.train, data.test)])
    expected = np.sort(x.astype(float).ravel()) / (255 if whole else 1)
    np.testing.assert_allclose(np.sort(given.double().ravel().numpy()), expected, rtol=1e-6)
    assert set(torch.bincount(data.test.y).tolist()) == {2}


def test_a_pixel_stays_in_its_place() -> None:
    x = pictures(6, 5, 3)
    data = dataset_of((x, Y), (x[:8], Y[:8]))
    assert data.test.x[2, 1, 4, 3] == x[2, 4, 3, 1]
    assert len(data.train.y) == N and torch.equal(data.test.y, torch.from_numpy(Y[:8]))


class Pairs(TorchDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def test_datasets_of_pytorch() -> None:
    x, y = torch.randn(N, 3, 5, 5), torch.from_numpy(Y)
    for data in (TensorDataset(x, y), Pairs([(a, int(b)) for a, b in zip(x, y, strict=True)])):
        made = dataset_of(data, data)
        assert torch.equal(made.train.x, x) and torch.equal(made.test.y, y) and made.classes == 4
    as_pictures = Pairs([(Image.fromarray(p), c) for p, c in zip(pictures(6, 5, 3), Y, strict=True)])
    assert dataset_of(as_pictures).input_shape == (3, 6, 5)


def test_targets_and_clients() -> None:
    x = rng.random((N, 3))
    assert dataset_of((x, rng.random(N))).classes == 0
    assert dataset_of((x, Y), regression=True).train.y.dtype == torch.float32
    words = dataset_of((x, np.array(["cat", "dog"])[Y % 2]))
    assert words.label_names == ("cat", "dog") and words.classes == 2
    owned = dataset_of((x, Y, np.array(["u10", "u9"])[Y // 2]))
    assert owned.client_names == ("u9", "u10") and owned.train.client is not None
    assert dataset_of((rng.integers(0, 9, (N, 5)), rng.integers(0, 9, (N, 5)))).classes == 9


def image_folder(folder: Path, classes: str = "ab", size: tuple[int, int] = (6, 5)) -> Path:
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", size, (50 * k, 10 * i, 0)).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_of_images(tmp_path: Path) -> None:
    data = dataset_of(image_folder(tmp_path / "all"))
    assert data.input_shape == (3, 5, 6) and data.label_names == ("a", "b") and len(data.test.y) == 2
    image_folder(tmp_path / "both/train", "abc")
    image_folder(tmp_path / "both/test", "ac")
    data = dataset_of(str(tmp_path / "both"))
    assert (len(data.train.y), len(data.test.y)) == (15, 10) and data.test.y.unique().tolist() == [0, 2]
    assert data.train.y.bincount().tolist() == [5, 5, 5]


def test_folders_that_are_none(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "none: no such file or folder; expected a folder with a folder of images for each class"),
        (tmp_path, "has no folder with images"),
    ):
        with pytest.raises(DataError, match=message):
            dataset_of(path)
    image_folder(tmp_path / "sizes")
    Image.new("RGB", (9, 9)).save(tmp_path / "sizes/a/z.png")
    with pytest.raises(DataError, match="images of 6 x 5, 9 x 9 pixels; expected one size"):
        dataset_of(tmp_path / "sizes")
    (image_folder(tmp_path / "broken") / "a/0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png is no readable image"):
        dataset_of(tmp_path / "broken")
    image_folder(tmp_path / "both/train"), image_folder(tmp_path / "both/test", "bc")
    with pytest.raises(DataError, match="the test split has the class 'c', which the training split lacks"):
        dataset_of(tmp_path / "both")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (3, {}, "data is a int; expected a Dataset; a datasets.Dataset or DatasetDict"),
        (Stream(), {}, "data is a Stream; expected"),
        (Pairs([5]), {}, "whose items are no pairs"),
        ({"valid": 1}, {}, "splits valid; expected one called train"),
        ((np.ones((4, 2)), np.arange(4)), {"target": "label"}, "target: names of columns, but data is a tuple"),
        ((pictures(3, 5, 3), Y), {}, r"shape \[3, 5, 3\] have channels first or last"),
    ],
)
def test_what_is_no_data_is_answered_with_what_is(data: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset_of(data, **options)


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"inputs has rows of the shapes \[2\], \[3\]; expected one shape"):
        dataset_of(Pairs([(torch.ones(2), 0), (torch.ones(3), 1)]))
    with pytest.raises(DataError, match="do not fit each other"):
        dataset_of((np.ones((N, 2)), Y), (np.ones((N, 3)), Y))
    with pytest.raises(DataError, match=r"40 different numbers as labels.*regression=True"):
        dataset_of((np.ones((N, 2)), np.arange(N)))


def test_an_experiment_takes_them_as_they_are(tmp_path: Path) -> None:
    case = Experiment(
        FedAvg(), data=(rng.random((N, 6)).astype(np.float32), Y), partition=IidPartitioner(4), rounds=1,  # type: ignore[arg-type]
        execution=Execution(backend="loop"),
    )  # fmt: skip
    assert run(case, output=tmp_path / "run", progress=False).path.exists()
    with pytest.raises(ConfigError, match="data is a int; expected"):
        Experiment(FedAvg(), data=3)  # type: ignore[arg-type]


@pytest.fixture
def hugging_face() -> Any:
    return pytest.importorskip("datasets", reason="the extra huggingface is not installed")


def test_tables_of_hugging_face(hugging_face: Any) -> None:
    hf = hugging_face
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    x = pictures(6, 5, 3)
    images = hf.Dataset.from_dict({"image": list(x), "label": (Y % 2).tolist()}, features=features)
    data = dataset_of(images, images)
    assert data.label_names == ("cat", "dog") and data.input_shape == (3, 6, 5)
    np.testing.assert_array_equal(data.test.x[7].permute(1, 2, 0), x[7])
    split = dataset_of(images.train_test_split(0.25, seed=0))
    assert (len(split.train.y), len(split.test.y)) == (30, 10)
    tabular = hf.Dataset.from_dict({"a": rng.random(N), "b": rng.random(N), "label": Y})
    both = dataset_of(tabular, inputs=["a", "b"])
    assert set(both.train.x) == {"a", "b"}
    with pytest.raises(ConfigError, match="the inputs may be any of a, b; name them"):
        dataset_of(tabular)
    with pytest.raises(ConfigError, match="there is no column 'c'; known: a, b, label"):
        dataset_of(tabular, target="c")
    with pytest.raises(DataError, match="samples without a label"):
        dataset_of(hf.Dataset.from_dict({"image": list(x), "label": [-1] * N}, features=features))


def test_texts_of_hugging_face(hugging_face: Any) -> None:
    texts = [f"{'ab' * (i % 3)} c" for i in range(N)]
    table = hugging_face.Dataset.from_dict({"text": texts, "label": Y, "who": [f"p{i % 5}" for i in range(N)]})

    def tokenize(texts: list[str]) -> Mapping[str, Any]:
        ids = np.zeros((len(texts), 6), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = [ord(letter) - 31 for letter in text]
        return {"input_ids": ids, "attention_mask": ids > 0}

    data = dataset_of(table, client="who", inputs="text", tokenize=tokenize)
    assert set(data.train.x) == {"input_ids", "attention_mask"} and data.client_names == ("p0", "p1", "p2", "p3", "p4")
    assert dataset_of(table.map(tokenize_one), client="who").input_shape == {"input_ids": (2,)}
    with pytest.raises(ConfigError, match="column 'text' holds texts; give tokenize"):
        dataset_of(table, inputs="text")
    with pytest.raises(ConfigError, match=r"tokenize returned a list; expected tensors or arrays \[N, ...\] by name"):
        dataset_of(table, inputs="text", tokenize=lambda texts: [len(text) for text in texts])  # type: ignore[arg-type, return-value]
    ragged = hugging_face.Dataset.from_dict({"input_ids": [[1] * (1 + i % 2) for i in range(N)], "label": Y})
    with pytest.raises(DataError, match="'input_ids' has rows of unequal shape"):
        dataset_of(ragged)


def tokenize_one(row: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": [len(row["text"]), 1]}


@pytest.fixture
def flower() -> Any:
    return pytest.importorskip("flwr_datasets.partitioner", reason="the extra huggingface is not installed")


def test_partitioners_of_flower_datasets(flower: Any, hugging_face: Any, tmp_path: Path) -> None:
    given = flower.DirichletPartitioner(num_partitions=5, partition_by="label", alpha=0.5, min_partition_size=2, seed=3)
    mine = FlowerPartitioner(given)
    once, again = mine.partition(Y, None, 0), mine.partition(Y, None, 1)
    assert once.n == 5 and once.hash == again.hash and sorted(once.indices.tolist()) == list(range(N))
    table = hugging_face.Dataset.from_dict({"label": Y, "row": np.arange(N)})
    theirs = flower.DirichletPartitioner(
        num_partitions=5, partition_by="label", alpha=0.5, min_partition_size=2, seed=3
    )
    theirs.dataset = table
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # of draws that it repeats
        theirs.load_partition(0)
    for k in range(5):
        mine_of = once.indices[once.offsets[k] : once.offsets[k + 1]]
        np.testing.assert_array_equal(mine_of, theirs.load_partition(k)["row"][:])
    owners = np.array([3, 1, 1, 7] * (N // 4))
    by_owner = FlowerPartitioner(flower.NaturalIdPartitioner(partition_by="who")).partition(Y, owners, 0)
    assert sorted(by_owner.sizes.tolist()) == [10, 10, 20]
    with pytest.raises(PartitionError, match="no natural clients"):
        FlowerPartitioner(flower.NaturalIdPartitioner(partition_by="who")).partition(Y, None, 0)
    large = flower.DirichletPartitioner(num_partitions=5, partition_by="label", alpha=0.5, min_partition_size=9)
    with pytest.raises(PartitionError, match="5 partitions of at least 9 of 40 samples; min_partition_size may be 8"):
        FlowerPartitioner(large).partition(Y, None, 0)
    case = Experiment(
        FedAvg(), data=(rng.random((N, 6)).astype(np.float32), Y), partition=given, rounds=1,  # type: ignore[arg-type]
        execution=Execution(backend="loop"),
    )  # fmt: skip
    assert run(case, output=tmp_path / "run", progress=False).path.exists()


@pytest.mark.parametrize(("targets", "clients"), [(50, None), (150, None), (100, 5), (100, 200)])
def test_inputs_targets_and_clients_are_of_one_number(targets: int, clients: int | None) -> None:
    data: tuple[Any, ...] = (np.zeros((100, 3), np.float32), np.arange(targets) % 2)
    data = data if clients is None else (*data, np.zeros(clients, int))
    with pytest.raises(DataError, match=f"data has 100 inputs, {targets} targets.*expected as many of each"):
        dataset_of(data)
