"""A node refuses what it should not do: calls for others, unknown functions, unfitting data, strange modules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common.config import parse_config_args

from fedsim.backends.flower.node.answer import answer
from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.forms import fingerprint
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.controller.prepare import prepare
from fedsim.errors import DeployError
from fedsim.experiment.config import from_config, to_config
from fedsim.messages import wire

RUN = "a" * 32
CONFIG = {
    "algorithm": "Scaffold",
    "data": "digits",
    "partition": {"name": "IidPartitioner", "num_partitions": 3},
    "model": {"name": "MLP", "hidden": [4]},
    "local": {"steps": 1},
}
TEXT = json.dumps(to_config(from_config(CONFIG)))
PREPARED = prepare(from_config(CONFIG), 0)
D = PREPARED.federation.model.d
COMMON = {
    "input_shape": [1, 8, 8], "classes": 10, "labels": None, "d": D, "n": 3, "partition": PREPARED.partition.hash,
}  # fmt: skip
ZEROS = {"zeros": ["float32", [D]]}
FORM = ["tuple", ["float32", [D]], ["float32", [D]]]


def question(values: dict[str, Any] | None = None) -> Call:
    """A call of Scaffold's client function to client 1, with changed values."""
    down = wire.encode((torch.zeros(D), torch.zeros(D)))
    usual = {
        "client": 1, "run": RUN, "seed": 0, "common": COMMON, "round": 1, "alive": [], "write": "1.1",
        "function": "client", "form": FORM, "memory": [ZEROS], "sends": True, "keep": False,
    }  # fmt: skip
    values = {**usual, **(values or {})}
    data = values.pop("data", {"down": down})
    return Call(values.pop("verb", "each"), values, data)


def ask(folder: Path, values: dict[str, Any] | None = None, text: str = TEXT, **settings: Any) -> Call:
    """The answer of client 1."""
    return answer(question(values), text, NodeSettings(1, folder, **settings))


def refusal(call: Call) -> str:
    assert call.verb == "refused" and not call.data
    return str(call.values["error"])


def test_a_good_call_is_answered_and_remembered(tmp_path: Path) -> None:
    made = ask(tmp_path)
    assert made.verb == "each"
    assert made.values["memory"] == ["tuple", ["float32", [D]]] and made.values["evaluations"] > 0
    _, change = wire.decode(made.data["message"])
    kept = NodeStore(tmp_path, RUN, 1).read("1.1.0")
    assert torch.equal(kept, change)                       # the memory was zero
    again = ask(tmp_path, {"memory": [{"version": "1.1.0"}], "alive": ["1.1.0"], "write": "1.2"})
    assert again.verb == "each" and NodeStore(tmp_path, RUN, 1).names() == ["1.1.0", "1.2.0"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"client": 2}, "a call for client 2 came to client 1"),
        ({"client": -1}, "client is -1; expected a whole number"),
        ({"function": "round"}, "has no client function 'round'; it has client"),
        ({"function": "__init__"}, "has no client function"),
        ({"function": "lr.__class__"}, "has no client function"),
        ({"function": None}, "has no client function None"),
        ({"run": "../../etc"}, "the run's token"),
        ({"seed": "0"}, "seed is '0'"),
        ({"write": "1.x"}, "write is '1.x'"),
        ({"form": FORM[:2]}, "the down message has the form"),
        ({"data": {"down": b"junk"}}, "expected a message of version"),
        ({"data": {"down": wire.encode((torch.full((D,), torch.nan), torch.zeros(D)))}}, "down message holds NaN"),
        ({"data": {"down": bytes(10**7)}}, "refused as oversized"),
        ({"memory": [{"version": "../secret"}]}, "a memory is called '../secret'"),
        ({"memory": [{"version": "1.7.0"}]}, "memory 1.7.0 is not in"),
        ({"memory": [{"pickle": "x"}]}, "a memory is called 'x'"),
        ({"memory": [{"zeros": ["Tensor", [3]]}]}, "is not a dtype"),
        ({"memory": 3}, "memory is 3"),
        ({"memory": [3]}, "a memory is 3"),
        ({"public": 3, "data": {}}, "public is 3"),
        ({"public": {"held": ["1.1.256"], "form": FORM}, "data": {}}, "public is {'held'"),
        ({"public": {"held": ["1.1.256"], "form": FORM}, "data": {"news-0": b""}}, "memory 1.1.256 is not in"),
        ({"public": {"held": ["../x"], "form": FORM}, "data": {"news-0": b""}}, "a memory is called '../x'"),
        ({"public": {"held": [], "form": FORM}, "data": {"news-0": b"junk"}}, "expected a message of version"),
        ({"memory": [{"initial": "shared-0"}]}, "the initial model differs from the server's"),
        ({"common": {"d": 3}}, "description of the data is malformed"),
        ({"common": {**COMMON, "n": 1}}, "this node is client 1, but there are clients 0 to 0"),
        ({"common": {**COMMON, "partition": "0" * 64}}, "give both the same files and the same fedsim"),
        ({"common": {**COMMON, "input_shape": [3]}}, r"samples have shape \[1, 8, 8\], the experiment's \[3\]"),
        ({"common": {**COMMON, "classes": 4}}, "this node's data has 10 classes, the experiment's 4 classes"),
        ({"common": {**COMMON, "classes": 0}}, "10 classes, the experiment's numbers as targets"),
        ({"common": {**COMMON, "d": D + 1}}, "parameters here"),
        ({"verb": "mix", "own": "1.1.255"}, "memory 1.1.255 is not in"),
        ({"verb": "value", "read": "1.1.0"}, "read is '1.1.0'; expected names"),
        ({"verb": "value", "read": ["../x"]}, "a memory is called '../x'"),
        ({"verb": "score", "data": {"x": wire.encode(torch.zeros(3))}}, "has the form"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_refused(values: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert re.search(why, refusal(ask(tmp_path, values)))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_first_memory_is_sent_once(tmp_path: Path) -> None:
    value = torch.randn(D)
    name = fingerprint(value)
    down = {"down": wire.encode((torch.zeros(D), torch.zeros(D)))}
    assert "is not in" in refusal(ask(tmp_path, {"memory": [{"shared": name}]}))
    assert ask(tmp_path, {"memory": [{"shared": name}], "data": {**down, name: wire.encode(value)}}).verb == "each"
    assert ask(tmp_path, {"memory": [{"shared": name}], "write": "1.2"}).verb == "each"
    other = {**down, name: wire.encode(value + 1)}
    assert "does not have the checksum" in refusal(ask(tmp_path, {"memory": [{"shared": name}], "data": other}))


MADE: list[int] = []


class Strange:
    """A model that a server would like this node to import."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        MADE.append(1)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))


def test_only_modules_that_the_operator_allows_are_imported(tmp_path: Path) -> None:
    text = json.dumps({**json.loads(TEXT), "model": f"{__name__}.Strange"})
    refused = refusal(ask(tmp_path, text=text))
    assert "which this node does not import for others" in refused and "allow" in refused
    for name in ("os.system", "builtins.eval", "subprocess.Popen"):
        harmful = json.dumps({**json.loads(TEXT), "model": {"name": name}})
        assert "does not import" in refusal(ask(tmp_path, text=harmful))
    assert not MADE
    assert ask(tmp_path, {"common": {**COMMON, "d": 650}, "verb": "hello"}, text, allow=(__name__,)).verb == "hello"
    assert MADE


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"algorithm": "Nonesuch"}', '{"algorithm": {"name": "FedAvg", "lr": -1}}']
)
def test_an_experiment_that_is_none(text: str, tmp_path: Path) -> None:
    assert refusal(ask(tmp_path, text=text))


def own_csv(folder: Path, labels: list[str], columns: int = 2, rows: int = 10) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = [",".join([*(f"f{k}" for k in range(columns)), "label"])]
    for i in range(rows):
        lines.append(",".join([*(f"{v:.3f}" for v in rng.normal(size=columns)), labels[i % len(labels)]]))
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_own_data(tmp_path: Path) -> None:
    """Classes are numbered as the server numbers them, though this node has met only two of three."""
    config = {**CONFIG, "data": {"name": "csv", "path": "elsewhere", "test_fraction": 0.3}}
    text = json.dumps(to_config(from_config(config)))
    d = 2 * 4 + 4 + 4 * 3 + 3
    common = {"input_shape": [2], "classes": 3, "labels": ["ill", "odd", "well"], "d": d, "n": 3, "partition": ""}
    values = {"common": common, "verb": "score", "data": {"x": wire.encode(torch.zeros(d))}}
    good = ask(tmp_path, values, text, data=own_csv(tmp_path / "good", ["well", "ill"]))
    assert good.verb == "score" and good.values["samples"] == 7
    assert good.values["loss"] == pytest.approx(np.log(3))
    strange = ask(tmp_path, values, text, data=own_csv(tmp_path / "strange", ["well", "dead"]))
    assert "has the label 'dead'; the experiment's are ill, odd, well" in refusal(strange)
    wide = ask(tmp_path, values, text, data=own_csv(tmp_path / "wide", ["well", "ill"], columns=3))
    assert "samples have shape [3], the experiment's [2]" in refusal(wide)
    assert "own data to this run; add to --node-config" in refusal(ask(tmp_path, values, text))
    assert "no *.csv" in refusal(ask(tmp_path, values, text, data=tmp_path / "nothing"))
    mine = ask(tmp_path, None, data=tmp_path / "good")
    assert "this node has its own data" in refusal(mine) and "--own-data" in refusal(mine)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "partition-id is None; start the node with --node-config 'partition-id=0"),
        ({"partition-id": "1"}, "partition-id is '1'"),
        ({"partition-id": -1}, "partition-id is -1"),
        ({"partition-id": 1, "path": "x"}, "unknown node config path; expected partition-id"),
    ],
)
def test_node_config(config: dict[str, Any], why: str) -> None:
    with pytest.raises(DeployError, match=why):
        NodeSettings.of(config, Path("store"))


def test_node_config_as_text() -> None:
    """Settings arrive as Flower reads them from a command line."""
    said = NodeSettings(2, Path("/a b"), Path("/c"), Path("/d"), ("x.y", "z"))
    assert NodeSettings.of(parse_config_args([said.text()]), Path("other")) == said
    assert NodeSettings.of({"partition-id": 0}, Path("other")) == NodeSettings(0, Path("other"))
