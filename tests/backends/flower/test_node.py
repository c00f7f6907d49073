"""A node refuses what it should not do: calls for others, unknown functions, unfitting data, strange modules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.common.config import parse_config_args

from fedsim.backends.flower.node.answer import answer
from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.common import as_text
from fedsim.backends.flower.protocol.forms import fingerprint
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.server.remote_data import common_of
from fedsim.controller.prepare import prepare
from fedsim.errors import DeployError
from fedsim.experiment.config import from_config
from fedsim.messages import wire

RUN = "a" * 32
CONFIG = {
    "algorithm": "Scaffold",
    "data": "digits",
    "partition": {"name": "IidPartitioner", "num_partitions": 3},
    "model": {"name": "MLP", "hidden": [4]},
    "local": {"steps": 1},
}
COMMON = common_of(prepare(from_config(CONFIG), 0))
TEXT = as_text(from_config(CONFIG), COMMON)
D = COMMON.d
ZEROS = {"zeros": ["float32", [D]]}
FORM = ["tuple", ["float32", [D]], ["float32", [D]]]


def question(values: dict[str, Any] | None = None) -> Call:
    """A call of Scaffold's client function to client 1, with changed values."""
    down = wire.encode((torch.zeros(D), torch.zeros(D)))
    usual = {
        "client": 1, "run": RUN, "seed": 0, "round": 1, "alive": [], "write": "1.1",
        "function": "client", "form": FORM, "memory": [ZEROS], "sends": True, "keep": False,
    }  # fmt: skip
    values = {**usual, **(values or {})}
    data = values.pop("data", {"down": down})
    return Call(values.pop("verb", "each"), values, data)


def ask(folder: Path, values: dict[str, Any] | None = None, text: str = TEXT, **settings: Any) -> Call:
    """The answer of client 1."""
    return answer(question(values), text, NodeSettings(1, folder, **settings))


def told(common: dict[str, Any] | None = None, signature: dict[str, Any] | None = None, **settings: Any) -> str:
    """The text with other settings of the experiment, or another description of its data and model."""
    values = json.loads(TEXT)
    values["experiment"] |= settings
    values["common"] |= common or {}
    values["common"]["data"] |= signature or {}
    return json.dumps(values)


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
        ({"function": "client {\"lr\": [1]}"}, "has the settings"),
        ({"function": "client {"}, "is not JSON"),
        ({"run": "../../etc"}, "the run's token"),
        ({"seed": "0"}, "seed is '0'"),
        ({"write": "1.x"}, "write is '1.x'"),
        ({"form": FORM[:2]}, "the down message is malformed: a tuple of 2 .* expected the form"),
        ({"data": {"down": b"junk"}}, "expected a message of version"),
        ({"data": {"down": wire.encode((torch.full((D,), torch.nan), torch.zeros(D)))}}, "down message holds NaN"),
        ({"data": {"down": bytes(10**7)}}, "refused as oversized"),
        ({"memory": [{"version": "../secret"}]}, "a memory is called '../secret'"),
        ({"memory": [{"version": "1.7.0"}]}, "memory 1.7.0 is not there"),
        ({"memory": [{"pickle": "x"}]}, "a memory is called 'x'"),
        ({"memory": [{"zeros": ["Tensor", [3]]}]}, "is not a dtype"),
        ({"memory": 3}, "memory is 3"),
        ({"memory": [3]}, "a memory is 3"),
        ({"public": 3, "data": {}}, "public is 3"),
        ({"public": {"held": ["1.1.256"], "form": FORM}, "data": {}}, "public is {'held'"),
        ({"public": {"held": ["1.1.256"], "form": FORM}, "data": {"news-0": b""}}, "memory 1.1.256 is not there"),
        ({"public": {"held": ["../x"], "form": FORM}, "data": {"news-0": b""}}, "a memory is called '../x'"),
        ({"public": {"held": [], "form": FORM}, "data": {"news-0": b"junk"}}, "expected a message of version"),
        ({"memory": [{"initial": "shared-0"}]}, "the initial model differs from the server's"),
        ({"verb": "mix", "own": "1.1.255"}, "memory 1.1.255 is not there"),
        ({"verb": "value", "read": "1.1.0"}, "read is '1.1.0'; expected names"),
        ({"verb": "value", "read": ["../x"]}, "a memory is called '../x'"),
        ({"verb": "score", "data": {"x": wire.encode(torch.zeros(3))}}, "malformed: the form"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_refused(values: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert re.search(why, refusal(ask(tmp_path, values)))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("common", "signature", "why"),
    [
        ({"d": "x"}, None, "description of the data is malformed"),
        ({}, {"labels": 3}, "description of the data is malformed"),
        ({"n": 1}, None, "this node is client 1, but there are clients 0 to 0"),
        ({"partition": "0" * 64}, None, "give both the same files and the same fedsim"),
        ({}, {"shape": [3]}, r"its inputs are not float32\[3\], as the experiment's are"),
        ({}, {"dtype": "int64"}, r"its inputs are not int64\[1, 8, 8\]"),
        ({}, {"classes": 4}, "it has more classes than the experiment's 4"),
        ({}, {"classes": 0}, "its targets are classes, the experiment's are not"),
        ({}, {"scale": [100.0]}, "its values of all inputs are more than 50 times as small as the experiment's"),
        ({}, {"checksums": [[0.0, 1.0], [0.0, 1.0]]}, "its inputs differ from the experiment's"),
        ({"d": D + 1}, None, "parameters here"),
    ],
)
def test_data_and_models_that_differ(common: Any, signature: Any, why: str, tmp_path: Path) -> None:
    assert re.search(why, refusal(ask(tmp_path, text=told(common, signature))))


def test_a_first_memory_is_sent_once(tmp_path: Path) -> None:
    value = torch.randn(D)
    name = fingerprint(value)
    down = {"down": wire.encode((torch.zeros(D), torch.zeros(D)))}
    assert "is not there" in refusal(ask(tmp_path, {"memory": [{"shared": name}]}))
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
    text = told(model=f"{__name__}.Strange", common={"d": 650})
    refused = refusal(ask(tmp_path, text=text))
    assert "which this node does not import for others" in refused and "allow" in refused
    for name in ("os.system", "builtins.eval", "subprocess.Popen"):
        harmful = told(model={"name": name})
        assert "does not import" in refusal(ask(tmp_path, text=harmful))
    assert not MADE
    assert ask(tmp_path, {"verb": "hello"}, text, allow=(__name__,)).verb == "hello"
    assert MADE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not JSON"),
        ("[]", "is a list; expected a JSON object"),
        ("{", "is not JSON"),
        ("{}", "not a JSON object of settings"),
        (told(algorithm="Nonesuch"), "algorithm is 'Nonesuch'"),
        (told(algorithm={"name": "FedAvg", "lr": -1}), "FedAvg.lr is -1"),
        (told(data="nonesuch"), "data is 'nonesuch'"),
    ],
)  # fmt: skip
def test_an_experiment_that_is_none(text: str, why: str, tmp_path: Path) -> None:
    assert why in refusal(ask(tmp_path, text=text))


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
    said = NodeSettings(2, Path("/a b"), Path("/c"), Path("/d"), (Path("/e f"), Path("/g")), ("x.y", "z"))
    assert NodeSettings.of(parse_config_args([said.text()]), Path("other")) == said
    said = NodeSettings(2, Path('/"a" b=1 \'c\' \\d\t'), Path("/Süd\U0001f642 \x7f"), files=(Path("/ä/%s"),))
    assert NodeSettings.of(parse_config_args([said.text()]), Path("other")) == said
    assert NodeSettings.of({"partition-id": 0}, Path("other")) == NodeSettings(0, Path("other"))


def test_a_newcomer_never_trains_and_personal_models_are_not_handed_out(tmp_path: Path) -> None:
    evaluation = {"holdout": 0.2, "unseen": 0.34, "fine_tune": 2}
    config = {**CONFIG, "algorithm": "Ditto", "evaluation": evaluation}
    prepared = prepare(from_config(config), 0)
    text = as_text(from_config(config), common_of(prepared))
    newcomer, client = NodeSettings(2, tmp_path), NodeSettings(1, tmp_path)
    refused = answer(question({"client": 2}), text, newcomer)
    assert "client 2 is one of evaluation.unseen, which evaluate and do not train" in refusal(refused)
    assert "there are clients 0 to 2" in refusal(answer(question({"client": 3}), text, NodeSettings(3, tmp_path)))
    x = {"x": wire.encode(torch.zeros(D))}
    losses = []
    for tuned in (False, True):
        made = answer(question({"verb": "score", "client": 2, "tuned": tuned, "data": x}), text, newcomer)
        assert made.values["samples"] == len(prepared.unseen[1].rows(0).y)  # type: ignore[index]
        losses.append(made.values["loss"])
    assert losses[1] < losses[0]
    NodeStore(tmp_path, RUN, 1).write("1.1.0", torch.zeros(3))
    asked = question({"verb": "value", "read": ["1.1.0"], "data": {}})
    assert "the server asks for a memory" in refusal(answer(asked, text, client))
    scored = question({"verb": "score", "own": "1.1.0", "data": {}})
    assert "the memory '1.1.0' is no model: it has the shape [3]" in refusal(answer(scored, text, client))
