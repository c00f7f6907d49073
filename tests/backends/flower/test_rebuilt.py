"""Methods whose nodes compute the model from a message and the last one: what the ledger charges, whatever fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.backends.flower.node.answer import answer
from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.protocol.calls import Call
from fedsim.backends.flower.protocol.common import as_text
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.backends.flower.server.known import Known
from fedsim.backends.flower.server.memories import Memories
from fedsim.backends.flower.server.remote_data import common_of
from fedsim.controller.prepare import prepare
from fedsim.experiment.config import from_config
from fedsim.messages import wire
from fedsim.messages.wire import form_of
from tests.backends.flower.grids import federation
from tests.backends.flower.test_copies import charged, counting
from tests.backends.flower.test_failures import (
    Killed,
    in_round,
    kill,
    lose_disk,
    reborn,
    restart,
    simulated,
    vanish,
)  # fmt: skip
from tests.backends.flower.test_parity import ADDED, CONFIG, PRODUCTS, agree, deploy, metrics

LOW: dict[str, Any] = {**CONFIG, "rounds": 6, "evaluation": {"every": 1}}
STACKS = {**LOW, "algorithm": "FLoRA", "model": ADDED}
METHODS = {"RoLoRA": PRODUCTS, "FLoRA": ADDED, "FedExLoRA": ADDED}
D = 2 * (64 + 8) + 64 * 8 + 8 * 10 + 10                    # A, B and R of one layer, and the other one


@pytest.mark.parametrize("name", METHODS)
def test_what_travels_is_what_is_charged(name: str, tmp_path: Path) -> None:
    """Those who were away are sent what they missed, or R itself, which is shorter."""
    config = {**LOW, "algorithm": name, "model": METHODS[name], "sampling": {"size": 1}, "rounds": 12}
    grid = federation(tmp_path / "nodes", 3)
    sent = counting(grid)
    deployed = metrics(deploy(tmp_path, config, grid).path)
    agree(deployed, metrics(fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False).path))
    assert sum(call.size for call in sent) == charged(deployed)
    assert len({call.size for call in sent}) >= 3
    assert max(call.size for call in sent) < 4 * D + 50    # whole factors and R, and headers


@pytest.mark.parametrize("name", METHODS)
def test_who_was_lost_gets_what_it_missed(name: str, tmp_path: Path) -> None:
    """It has computed a model in a call that nobody heard of."""
    config = {**LOW, "algorithm": name, "model": METHODS[name]}
    grid = federation(tmp_path / "nodes", 3)
    sent = counting(grid)
    grid.nodes[101].after = in_round(3, vanish)
    deployed = metrics(deploy(tmp_path, config, grid, retries=0).path)
    agree(deployed, simulated(tmp_path, config, r3=(0, 2)))
    (lost,) = (call.size for call in sent if (call.round, call.node) == (3, 101))
    assert sum(call.size for call in sent) == charged(deployed) + lost


def test_a_round_of_groups_that_loses_a_client_begins_with_the_models_before_it(tmp_path: Path) -> None:
    """The first group has computed its models when the second one fails, and computes none twice."""
    config = {**STACKS, "algorithm": {"name": "FLoRA", "ranks": [1, 1, 2]}}
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[102].after = in_round(3, vanish)
    deployed = metrics(deploy(tmp_path, config, grid, retries=0).path)
    agree(deployed, simulated(tmp_path, config, r3=(0, 1)))


def test_a_restarted_node_has_its_model(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    restart(grid, 3)
    agree(metrics(deploy(tmp_path, STACKS, grid).path), simulated(tmp_path, STACKS, r3=(0, 2)))


def test_a_node_that_lost_its_model_is_sent_the_whole(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    lose_disk(grid, 3, tmp_path)
    deployed = metrics(deploy(tmp_path, STACKS, grid).path)
    agree(deployed, simulated(tmp_path, STACKS, r3=(0, 2)))


def test_a_server_that_died_sends_whole_models_once_more(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[102].after = in_round(4, kill)
    with pytest.raises(Killed):
        deploy(tmp_path, STACKS, grid)
    grid = reborn(grid)
    sent = counting(grid)
    agree(metrics(deploy(tmp_path, STACKS, grid).path), simulated(tmp_path, STACKS))
    assert [call.size > 4 * D for call in sent] == [True] * 3 + [False] * 6


def test_versions_that_clients_hold() -> None:
    known, memories = Known(), Memories([torch.zeros(10)], lambda handle: torch.zeros(10))
    assert known.version(0) is None                        # of a run that this server goes on with
    known.begun = True
    assert known.version(0) == ""
    known.arrived(0, memories.handle(0, "1.1.256", ["float32", [10]]))
    before = known.snapshot()
    known.arrived(0, memories.handle(0, "1.2.256", ["float32", [10]]))
    known.restore(before)
    assert known.version(0) == "1.1.256" and memories.alive(0) == ["1.1.256"]
    known.forget(0)
    known.restore(before)
    assert known.version(0) is None and known.version(1) == ""


def test_a_node_refuses_what_it_cannot_compute(tmp_path: Path) -> None:
    config = {**CONFIG, "algorithm": "RoLoRA", "model": PRODUCTS}
    text = as_text(from_config(config), common_of(prepare(from_config(config), 0)))
    half = torch.ones(2 * 64 + 90)
    NodeStore(tmp_path, "a" * 32, 1).write("1.1.256", torch.zeros(5))

    def asked(rebuilt: Any, message: Any = half) -> str:
        values = {
            "client": 1, "run": "a" * 32, "seed": 0, "round": 1, "alive": ["1.1.256"], "write": "1.2", "memory": [],
            "function": 'client {"half": "B"}', "form": form_of(message), "sends": True, "rebuilt": rebuilt,
        }  # fmt: skip
        made = answer(Call("each", values, {"down": wire.encode(message)}), text, NodeSettings(1, tmp_path))
        return str(made.values.get("error", made.verb))

    by = 'told {"kinds": "A+"}'
    assert asked({"known": "", "by": by}) == "each"
    assert NodeStore(tmp_path, "a" * 32, 1).read("1.2.256").shape == (2 * 72 + 90,)
    for rebuilt, message, expected in (
        ({"known": ""}, half, "expected a version and a client function"),
        ({"known": "", "by": "round"}, half, "RoLoRA has no client function 'round'"),
        ({"known": "9.9.256", "by": by}, half, "9.9.256"),
        ({"known": "", "by": by}, half[:-1], "does not compute a model from its message"),
        ({"known": "1.1.256", "by": by}, half, "does not compute a model from its message"),
        ({"known": "", "by": 'client {"half": "B"}'}, half, "client function|does not compute"),
    ):
        found = asked(rebuilt, message)
        assert any(part in found for part in expected.split("|")), found
