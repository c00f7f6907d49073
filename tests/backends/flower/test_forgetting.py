"""Memories of a run are removed from clients when it has ended, and not before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedsim.backends.flower.protocol.calls import from_records
from fedsim.errors import DeployError
from tests.backends.flower.grids import federation
from tests.backends.flower.test_failures import CONFIG, EF21, in_round, simulated, vanish
from tests.backends.flower.test_parity import RING, agree, deploy, metrics


def memories(folder: Path) -> set[str]:
    """Tokens of the runs of which some client keeps memories."""
    return {path.parent.parent.name for path in (folder / "nodes").rglob("*.safetensors")}


@pytest.mark.parametrize("algorithm", [EF21, "DFedSAM"], ids=["EF21", "DFedSAM"])
@pytest.mark.slow
def test_a_run_that_has_ended_leaves_no_memories(algorithm: Any, tmp_path: Path) -> None:
    """And takes none of another run, which failed and goes on."""
    config = {**CONFIG, "algorithm": algorithm, **({"topology": RING} if algorithm == "DFedSAM" else {})}
    failing, working = federation(tmp_path / "nodes", 3), federation(tmp_path / "nodes", 3)
    failing.nodes[102].after = in_round(3, vanish)
    with pytest.raises(DeployError):
        deploy(tmp_path, config, failing, missing="stop", patience=0.0, retries=0)
    token = json.loads((tmp_path / "deployed/manifest.json").read_text())["deployment"]["run"]
    assert memories(tmp_path) == {token}
    deploy(tmp_path, config, working, output=str(tmp_path / "other"))
    assert memories(tmp_path) == {token}
    deploy(tmp_path, config, working)
    assert not list((tmp_path / "nodes").glob("*/*"))
    agree(metrics(tmp_path / "deployed"), simulated(tmp_path, config))


def test_a_run_that_has_ended_succeeds_even_if_nobody_forgets(tmp_path: Path) -> None:
    grid, said = federation(tmp_path / "nodes", 3), list[str]()

    def crash(message: Message) -> None:
        if message.metadata.message_type == "query" and from_records(message.content, 2**20).verb == "forget":
            raise OSError("disk")

    grid.nodes[101].before = crash
    deploy(tmp_path, {**CONFIG, "algorithm": EF21}, grid, say=said.append)
    assert [path.name for path in (tmp_path / "nodes").glob("*/*/*")] == ["client-1"]
    assert any("client 1 failed" in line and "disk" in line for line in said)
