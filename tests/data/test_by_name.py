"""A user's data on the command line: images, tables of Hugging Face, memory-mapped arrays; what config.yaml repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from algorithms import FedAvg
from fedsim import Data, Dataset, Execution, Experiment, IidPartitioner, Split, dataset_of, run
from fedsim.cli import main
from fedsim.data import MissingDataError, load, save_dataset
from fedsim.errors import ConfigError, DataError
from tests.data.test_adapters import N, Y, image_folder, pictures, rng

SETTINGS = ["--algorithm", "FedAvg", "--partition", "IidPartitioner", "--partition.num_partitions", "2"]
SETTINGS += ["--rounds", "1", "--backend", "loop", "--quiet", "--evaluation.clients_every", "null"]


def metrics(path: Path) -> bytes:
    return (path / "seed-0/metrics.jsonl").read_bytes()


def runs_again(data: list[str], folder: Path) -> Any:
    """Settings of the data in the config.yaml of a run, by which a second run gives the same bytes."""
    assert main(["run", *data, *SETTINGS, "--output", str(folder / "first")]) == 0
    config = folder / "first/config.yaml"
    assert main(["run", str(config), "--quiet", "--output", str(folder / "again")]) == 0
    assert metrics(folder / "first") == metrics(folder / "again")
    return yaml.safe_load(config.read_text())["data"]


def test_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "photos/train"), image_folder(tmp_path / "photos/test")
    Image.new("L", (30, 40), 7).save(tmp_path / "photos/train/a/large.png")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--data", "images", "--data.path", "photos", *SETTINGS]) == 1   # of two sizes
    kept = runs_again(["--data", "images", "--data.path", "photos", "--data.size", "[6,5]"], tmp_path)
    assert kept["path"] == str(tmp_path / "photos") and kept["size"] == [6, 5]
    data = load("images", path="photos", size=(6, 5))
    assert data.input_shape == (3, 6, 5) and data.train.pixels and len(data.train.y) == 11
    with pytest.raises(ConfigError, match=r"size is \[6\]; expected height and width"):
        load("images", path="photos", size=(6,))
    with pytest.raises(ConfigError, match="has a folder of test images; leave it out"):
        load("images", path="photos", test_fraction=0.2)


def test_the_path_of_a_folder_in_python_is_that_by_name(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos")
    for given in (tmp_path / "photos", str(tmp_path / "photos")):
        case = Experiment(FedAvg(), data=given)  # type: ignore[arg-type]
        assert case.data == Data("images", options={"path": str(tmp_path / "photos")})
    with pytest.raises(ConfigError, match="and there is no folder of that name"):
        Experiment(FedAvg(), data=tmp_path / "none")  # type: ignore[arg-type]


def arrays(folder: Path, **changed: Any) -> Path:
    folder.mkdir()
    x = pictures(3, 6, 5)
    files = {"x": x, "y": Y, "x_test": x[:8], "y_test": Y[:8], "client": Y // 2, "label_names": np.array([*"abcd"])}
    for name, array in (files | changed).items():
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def test_memory_mapped_arrays(tmp_path: Path) -> None:
    data = load("npy", path=arrays(tmp_path / "arrays"))
    assert data.label_names == tuple("abcd") and data.client_names == ("0", "1") and data.train.pixels
    x = np.load(tmp_path / "arrays/x.npy")
    assert data.train.x.dtype == torch.uint8 and (data.train.x.numpy() == x).all()
    assert not data.train.x.numpy().flags.owndata
    kept = runs_again(["--data", "npy", "--data.path", str(tmp_path / "arrays")], tmp_path)
    assert kept["name"] == "npy"
    grey = load("npy", path=arrays(tmp_path / "grey", x=x[:, 0], x_test=x[:8, 0], client=None))
    assert grey.input_shape == (1, 6, 5) and grey.client_names is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_test": None, "y": None}, r"no y\.npy, x_test\.npy; expected a folder with x\.npy"),
        ({"y": Y[:-1]}, r"y\.npy: shape \[39\]; expected one value for each of 40 inputs"),
        ({"client": Y[:, None]}, r"client\.npy: shape \[40, 1\]; expected one value"),
        ({"x_test": rng.random((8, 3, 6, 5))}, r"x\.npy is torch\.uint8, x_test\.npy torch\.float64; exp"),
        ({"x": pictures(6, 5, 3)}, r"images \[40, 6, 5, 3\] have their channels last; expected \[N, C, H, W\]"),
        ({"x": np.asfortranarray(rng.random((40, 3)))}, "in C order"),
        ({"x": np.ones(40)}, r"shape \[40\]; expected \[N, \.\.\.\]"),
        ({"x": rng.random((40, 3)).astype(">f8")}, "inputs of >f8; expected float32 or float64"),
        ({"x": np.array([{}] * 40)}, "not a readable .npy of a plain array"),
        ({"x": np.array([["a"]] * 40)}, "<U1; expected numbers"),
        ({"x": np.full((40, 3, 6, 5), np.nan), "x_test": np.ones((8, 3, 6, 5))}, "an input of sample 0 is NaN"),
        ({"y": Y + 9}, "y does not hold positions in label_names"),
    ],
)
def test_arrays_that_do_not_fit(changed: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load("npy", path=arrays(tmp_path / "arrays", **changed))


@pytest.mark.parametrize(
    "name", ["cifar_binary", "csv", "huggingface", "idx", "images", "jsonl", "leaf", "libsvm", "npy", "npz"]
)
def test_data_that_has_moved(name: str, tmp_path: Path) -> None:
    """One sentence for all sources, which says what is sought."""
    with pytest.raises(MissingDataError, match=r"/away: no such file or folder; expected (a|an|lines|LIBSVM) .*"):
        load(name, path=tmp_path / "away")


def test_larger_data_is_gathered_from_bytes_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.controller import placement

    data = dataset_of((pictures(8, 8), Y))
    case = Experiment(
        FedAvg(), data=data, partition=IidPartitioner(4), rounds=2, execution=Execution(backend="loop", threads=1)
    )
    small = run(case, output=tmp_path / "small", progress=False).path
    for dtype in (torch.float32, torch.float64):
        ways = []
        for copied in (2**27, 0):
            monkeypatch.setattr(placement, "COPIED", copied)
            ((shards, _),) = placement.place(
                case, data, IidPartitioner(4).partition(data.labels, None, 0), 0, torch.device("cpu"), dtype, (4,)
            )
            ways.append(shards.rows(2))
            assert shards.in_memory == bool(copied) and shards.rows(2).x.dtype == dtype
        assert torch.equal(ways[0].x, ways[1].x) and torch.equal(ways[0].y, ways[1].y)
    large = run(case, output=tmp_path / "large", progress=False).path
    assert metrics(small) == metrics(large)


def test_data_made_in_python_says_how_it_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, owners = torch.from_numpy(rng.random((N, 3)).astype(np.float32)), Y // 2
    y = torch.from_numpy(Y)
    names = ("ann", "bob")
    mine = Dataset("mine", Split(x, y, owners), Split(x[:8], y[:8], owners[:8]), 4, names, tuple("abcd"))
    case = Experiment(FedAvg(), data=mine, partition=IidPartitioner(4), rounds=1, execution=Execution(backend="loop"))
    config = str(run(case, output=tmp_path / "run", progress=False).path / "config.yaml")
    assert main(["run", config]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "data was made in Python (Dataset 'mine')" in said and "fedsim.run(experiment)" in said
    assert "fedsim.save_dataset(data, 'FILE.npz'), and add --data npz --data.path FILE.npz" in said
    file = tmp_path / "mine.npz"
    save_dataset(mine, file)
    saved = load("npz", path=file)
    assert saved.client_names == names and saved.label_names == mine.label_names and saved.train.client is not None
    assert torch.equal(saved.train.x, x) and torch.equal(saved.test.y, y[:8]) and (saved.train.client == owners).all()
    more = ["--data", "npz", "--data.path", str(file), "--quiet", "--output", str(tmp_path / "again")]
    assert main(["run", config, *more]) == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "again")
    with pytest.raises(DataError, match="exists, and nothing is overwritten"):
        save_dataset(mine, file)
    for odd in (Split({"a": x, "b": x}, y), Split(x.long(), x.long())):
        with pytest.raises(DataError, match="cannot hold; expected one tensor of inputs and one target"):
            save_dataset(Dataset("odd", odd, odd, 4), tmp_path / "odd.npz")
    assert not (tmp_path / "odd.npz").exists()


def test_bytes_and_real_targets_are_saved_as_they_are(tmp_path: Path) -> None:
    for k, data in enumerate((dataset_of((pictures(4, 4), Y)), dataset_of((rng.random((N, 3)), rng.random(N))))):
        save_dataset(data, tmp_path / f"{k}.npz")
        saved = load("npz", path=tmp_path / f"{k}.npz")
        assert saved.train.pixels == data.train.pixels and torch.equal(saved.train.y, data.train.y)
        assert torch.equal(saved.train.x, data.train.x.to(saved.train.x.dtype)) and saved.classes == data.classes


@pytest.fixture
def hugging_face() -> Any:
    return pytest.importorskip("datasets", reason="the extra huggingface is not installed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")   # datasets leaves a CSV file open
def test_tables_of_hugging_face_by_name(hugging_face: Any, tmp_path: Path) -> None:
    hf = hugging_face
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=[*"abcd"]), "who": hf.Value("string")})
    who = [f"p{k % 5}" for k in range(N)]
    table = hf.Dataset.from_dict({"image": list(pictures(6, 5, 3)), "label": Y, "who": who}, features=features)
    table.save_to_disk(tmp_path / "one")
    hf.DatasetDict(train=table, test=table.select(range(8))).save_to_disk(tmp_path / "two")
    options = ["--data", "huggingface", "--data.inputs", "[image]", "--data.client", "who"]
    kept = runs_again([*options, "--data.path", str(tmp_path / "two")], tmp_path)
    assert kept["path"] == str(tmp_path / "two") and kept["client"] == "who"
    one = load("huggingface", path=tmp_path / "one", client="who")
    assert one.input_shape == (3, 6, 5) and one.client_names == ("p0", "p1", "p2", "p3", "p4") and len(one.test.y) == 8
    rows = hf.Dataset.from_dict({"a": rng.random(N), "label": Y})
    (tmp_path / "files").mkdir()
    rows.to_json(tmp_path / "files/train.jsonl"), rows.select(range(4)).to_json(tmp_path / "files/test.jsonl")
    files = load("huggingface", path=tmp_path / "files")
    assert len(files.train.y) == N and len(files.test.y) == 4
    rows.to_csv(tmp_path / "rows.csv")
    assert load("huggingface", path=tmp_path / "rows.csv", regression=True).classes == 0


def test_tables_that_are_not_there(hugging_face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset_dict.json").write_text("no json")
    with pytest.raises(DataError, match="datasets cannot read it"):
        load("huggingface", path=tmp_path)
    for path, message in (("none", "no such file or folder; expected a folder that save_to"), (".", "found")):
        (tmp_path / "dataset_dict.json").unlink(missing_ok=True)
        with pytest.raises(MissingDataError, match=message):
            load("huggingface", path=tmp_path / path)
    with pytest.raises(ConfigError, match="and not both: path is x, hub y"):
        load("huggingface", path="x", hub="y")
    monkeypatch.setattr(hugging_face, "load_dataset", offline)
    with pytest.raises(DataError) as caught:
        load("huggingface", hub="imdb", config="plain")
    said = str(caught.value)
    assert 'gives no "imdb", "plain": ConnectionError: no network' in said and "HF_HOME" in said
    assert 'datasets.load_dataset("imdb", "plain").save_to_disk(FOLDER)' in said and "set data.path to it" in said


def offline(*arguments: Any) -> None:
    raise ConnectionError("no network")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n")
    with pytest.raises(ConfigError, match=r"data huggingface needs datasets .*pip install '\.\[huggingface\]'"):
        load("huggingface", path=tmp_path / "rows.csv")
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs datasets"):
        load("huggingface", path=tmp_path)


def test_texts_by_a_tokenizer_in_a_folder(hugging_face: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers  # comes with transformers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2, "blue": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    made.save_pretrained(tmp_path / "words")
    table = hugging_face.Dataset.from_dict({"text": ["red blue", "blue"] * 20, "label": [0, 1] * 20})
    table.save_to_disk(tmp_path / "table")
    with pytest.raises(ConfigError, match="column 'text' holds texts; give tokenize"):
        load("huggingface", path=tmp_path / "table")
    data = load("huggingface", path=tmp_path / "table", tokenizer_path=tmp_path / "words", max_length=3)
    assert data.train.x["input_ids"].unique(dim=0).tolist() == [[2, 3, 0], [3, 0, 0]]
    assert data.train.x["attention_mask"].shape[1:] == (3,)
    with pytest.raises(MissingDataError, match=r"no such file or folder; .* of data\.tokenizer_path"):
        load("huggingface", path=tmp_path / "table", tokenizer_path=tmp_path / "none")
