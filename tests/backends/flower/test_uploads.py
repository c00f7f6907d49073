"""Uploads of nodes equal the ledger's charges: the bytes of their answers, added up, for every algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedsim.backends.flower.protocol.calls import from_records
from tests.backends.flower.grids import federation
from tests.backends.flower.test_parity import CASES, CONFIG, deploy, metrics

pytestmark = pytest.mark.slow

NODES = 3


def hearers(config: dict[str, Any]) -> int:
    """Number of receivers that the ledger charges each upload for; a server's nodes send to one."""
    taking_part = config["sampling"].get("size", NODES)
    return taking_part - 1 if "topology" in config else 1  # in a ring of three everybody hears everybody


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_of_answers_are_those_of_the_ledger(case: str, tmp_path: Path) -> None:
    uploaded = []

    def count(message: Message) -> Message:
        answer = from_records(message.content, 2**30)
        if answer.verb in ("each", "mix"):
            uploaded.append(sum(map(len, answer.data.values())))
        return message

    config: dict[str, Any] = {**CONFIG, **CASES[case], "seeds": 1}
    grid = federation(tmp_path / "nodes", NODES)
    for node in grid.nodes.values():
        node.after = count
    deployed = deploy(tmp_path, config, grid)
    rows = [row for row in metrics(deployed.path) if (row["metric"], row["node"]) == ("bytes_up", None)]
    assert sum(uploaded) * hearers(config) == rows[-1]["value"]
