"""A node's data fit the experiment by name, or are refused; nothing of them is in what the server is told."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.backends.flower.node.answer import answer
from fedsim.backends.flower.node.data import side_of
from fedsim.backends.flower.node.discretion import sentence
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.common import Common, as_text
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.server.remote_data import of_own_data
from fedsim.errors import ClientError
from fedsim.experiment.config import from_config
from fedsim.messages import wire
from tests.backends.flower.test_node import CONFIG, RUN, refusal

Files = dict[str, str]


def table(header: str, rows: int = 20, labels: str = "well ill", times: float = 1.0, last: str = "") -> str:
    """A CSV file whose columns depend on their names, in whatever order."""
    names, choices = header.split(","), labels.split()
    lines = [header]
    for i in range(rows):
        values = {"age": f"{20 + i}", "bmi": f"{times * (20 + i * 7 % 9)}", "ill": choices[i % len(choices)]}
        lines.append(",".join(values.get(name, "1.5") for name in names))
    return "\n".join([*lines, *([last] if last else [])]) + "\n"


def experiment_text(folder: Path, content: str, n: int = 2, **settings: Any) -> str:
    """What a server with these files tells its nodes."""
    (folder / "server").mkdir()
    (folder / "server/data.csv").write_text(content)
    data = {"name": "csv", "path": str(folder / "server"), **settings}
    experiment = from_config({**CONFIG, "data": data})
    told: list[Common] = []
    of_own_data(experiment, 0, n, lambda common: (told.append(common), np.full(n, 10))[1])
    return as_text(experiment, told[0])


def node(folder: Path, content: str) -> NodeSettings:
    """Settings of a node with this file in a new folder, as a node reads its data once."""
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "secret.csv").write_text(content)
    return NodeSettings(1, folder / "store", own)


def ask(text: str, settings: NodeSettings) -> Call:
    return answer(Call("hello", {"run": RUN, "seed": 0}), text, settings)


@pytest.mark.parametrize("header", ["bmi,age,ill", "ill,bmi,age", "age,ill,bmi"])
def test_columns_are_matched_by_name(header: str, tmp_path: Path) -> None:
    """Those of the experiment come first, and its target is not the node's last column."""
    text = experiment_text(tmp_path, table("age,bmi,ill"))
    expected = side_of(text, 0, node(tmp_path, table("age,bmi,ill")))
    found = side_of(text, 0, node(tmp_path, table(header)))
    one, other = (side.federation.shards.rows(1) for side in (found, expected))
    assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


@pytest.mark.parametrize(
    ("content", "why", "hidden"),
    [
        (table("age,weight,ill"), "1 other feature .* and lack bmi; .* columns age, bmi and the target ill", "weight"),
        (table("age,bmi,smokes,ill"), "1 other feature than the experiment's; give it a file with", "smokes"),
        (table("age,bmi,ill", labels="well dead"), "1 label that .* data lack, which have ill, well", "dead"),
        (table("age,bmi,ill", times=1000), "its values of bmi are more than 50 times as large", "e+04"),
        (table("age,bmi,ill", last="41,Smith,ill"), "its data cannot be read; the node's own log says why", "Smith"),
        (table("age,bmi,sick"), "its data cannot be read", "sick"),
        ("", "its data cannot be read", "secret.csv"),
    ],
    ids=["renamed", "another", "label", "unit", "a text cell", "target", "empty"],
)  # fmt: skip
def test_what_differs_is_named_in_the_servers_words(
    content: str, why: str, hidden: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = experiment_text(tmp_path, table("age,bmi,ill"), standardize=False)
    error = refusal(ask(text, node(tmp_path, content)))
    assert re.search(why, error), error
    assert hidden not in error and str(tmp_path) not in error
    assert hidden in capfd.readouterr().err, "the operator is told"


def test_characters_are_numbered_as_the_server_does(tmp_path: Path) -> None:
    """In inputs as in targets; a node need not have all of them."""
    line = '{{"client": "a", "text": "{}"}}\n'
    (tmp_path / "server.jsonl").write_text(line.format("abcdefgh" * 30))
    (tmp_path / "node.jsonl").write_text(line.format("hgfe" * 60))
    data = {"name": "jsonl", "path": str(tmp_path / "server.jsonl"), "sequence_length": 10}
    experiment = from_config({**CONFIG, "data": data, "model": "CharLSTM"})
    told: list[Common] = []
    of_own_data(experiment, 0, 2, lambda common: (told.append(common), np.full(2, 10))[1])
    side = side_of(as_text(experiment, told[0]), 0, NodeSettings(1, tmp_path, tmp_path / "node.jsonl"))
    assert side.federation.shards.x[0].tolist() == [7, 6, 5, 4, 7, 6, 5, 4, 7, 6]
    assert side.federation.shards.y[0].tolist() == [6, 5, 4, 7, 6, 5, 4, 7, 6, 5]
    (tmp_path / "strange.jsonl").write_text(line.format("hgxe" * 60))
    strange = refusal(ask(as_text(experiment, told[0]), NodeSettings(1, tmp_path, tmp_path / "strange.jsonl")))
    assert "1 character that the experiment's data lack" in strange and "x," not in strange


def test_a_server_reads_no_file_of_a_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Named data sets alone, unless the operator says otherwise; nor through a link, a topology or a model."""
    (tmp_path / "private.txt").write_text("rosebud:x:0:0\n")
    (tmp_path / "open").mkdir()
    (tmp_path / "open/link.txt").symlink_to(tmp_path / "private.txt")
    text = experiment_text(tmp_path, table("age,bmi,ill"))
    of_partition = text.replace('"partition": ""', '"partition": "0"')
    for path in ("private.txt", "open/link.txt", "open/../private.txt"):
        data = {"name": "libsvm", "path": str(tmp_path / path)}
        for stolen in (text, of_partition):
            spying = stolen.replace(str(tmp_path / "server"), data["path"]).replace('"csv"', '"libsvm"')
            spying = re.sub(r'"(target|client|regression|standardize)": \w+, ', "", spying)
            error = refusal(ask(spying, NodeSettings(1, tmp_path / "store", files=(tmp_path / "open",))))
            assert "rosebud" not in error
    assert "which this node does not read for others" in error and "--node-config" in error
    values = json.loads(of_partition)
    values["experiment"]["data"] = {"name": "huggingface", "hub": "imdb"}
    remote = refusal(ask(json.dumps(values), NodeSettings(1, tmp_path / "store")))
    assert "'imdb' of the Hugging Face hub, which this node does not fetch for others" in remote
    topology = text.replace('"topology": null', f'"topology": {{"path": "{tmp_path}/private.txt"}}')
    assert "does not read for others" in refusal(ask(topology, node(tmp_path, table("age,bmi,ill"))))
    assert "rosebud" not in capfd.readouterr().err


def test_errors_of_client_code_stay_with_the_node() -> None:
    error = ClientError([1], "client", 3, "ValueError: patient 4711", "Traceback")
    assert sentence(error) == "the client function failed; the node's own log says why"
    assert "4711" not in sentence(RuntimeError("4711")) and "memory" in sentence(MemoryError())


def test_memories_are_private(tmp_path: Path) -> None:
    text = experiment_text(tmp_path, table("age,bmi,ill"))
    side = side_of(text, 0, node(tmp_path, table("age,bmi,ill")))
    d = side.federation.model.d
    down = wire.encode((torch.zeros(d), torch.zeros(d)))
    form = ["tuple", ["float32", [d]], ["float32", [d]]]
    values = {
        "client": 1, "run": RUN, "seed": 0, "round": 1, "alive": [], "write": "1.1", "function": "client",
        "form": form, "memory": [{"zeros": ["float32", [d]]}], "sends": True, "keep": False,
    }  # fmt: skip
    assert answer(Call("each", values, {"down": down}), text, node(tmp_path, table("age,bmi,ill"))).verb == "each"
    store = tmp_path / "store"
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in [store, *store.rglob("*")]}
    assert modes == {True: 0o700, False: 0o600}
