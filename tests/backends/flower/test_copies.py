"""EF21-P behind Flower: clients hold the public copy themselves, and get what the ledger charges, whatever fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from flwr.app import Message

import fedsim
from fedsim.backends.flower.protocol.calls import from_records
from fedsim.backends.flower.server.copies import Copies
from fedsim.backends.flower.server.memories import Memories
from fedsim.experiment.config import from_config
from tests.backends.flower.grids import FakeGrid, federation
from tests.backends.flower.test_failures import (
    Killed,
    in_round,
    kill,
    lose_disk,
    reborn,
    restart,
    simulated,
    trains,
    vanish,
)  # fmt: skip
from tests.backends.flower.test_parity import CONFIG, EF21P, agree, deploy, metrics

LINKED: dict[str, Any] = {**CONFIG, "algorithm": "FedAvg", "downlink": EF21P, "rounds": 6, "evaluation": {"every": 1}}
VECTOR = ["float32", [10]]


def accuracies(rows: list[dict[str, Any]]) -> list[float]:
    return [row["value"] for row in rows if row["scope"] == "server/test"]


def charged(rows: list[dict[str, Any]]) -> int:
    """Bytes down in the whole run."""
    return max(int(row["value"]) for row in rows if row["scope"] == "total" and row["metric"] == "bytes_down")


class Sent(NamedTuple):
    round: int
    node: int
    size: int


def counting(grid: FakeGrid) -> list[Sent]:
    """Grows by every call for work, with the bytes of its messages."""
    sent = list[Sent]()

    def count(message: Message) -> None:
        if trains(message):
            size = from_records(message.content, 2**30).nbytes()
            sent.append(Sent(trains(message), message.metadata.dst_node_id, size))

    for node in grid.nodes.values():
        node.before = count
    return sent


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_what_travels_is_what_is_charged(fraction: float, tmp_path: Path) -> None:
    """Some of those who were away are sent what they missed, others the whole copy, which is shorter."""
    compressor = {"name": "TopK", "fraction": fraction}
    config = {**LINKED, "downlink": {**EF21P, "compressor": compressor}, "sampling": {"size": 1}, "rounds": 12}
    grid = federation(tmp_path / "nodes", 3)
    sent = counting(grid)
    deployed = metrics(deploy(tmp_path, config, grid).path)
    agree(deployed, metrics(fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False).path))
    assert sum(call.size for call in sent) == charged(deployed)
    assert len({call.size // 100 for call in sent}) >= 3, "one message, several, the whole copy"


def test_who_was_lost_gets_what_it_missed(tmp_path: Path) -> None:
    """It has moved its copy by a message in a call that nobody heard of."""
    grid = federation(tmp_path / "nodes", 3)
    sent = counting(grid)
    grid.nodes[101].after = in_round(3, vanish)
    deployed = metrics(deploy(tmp_path, LINKED, grid, retries=0).path)
    agree(deployed, simulated(tmp_path, LINKED, r3=(0, 2)))
    (lost,) = (call.size for call in sent if (call.round, call.node) == (3, 101))
    assert sum(call.size for call in sent) == charged(deployed) + lost


def test_a_restarted_node_has_its_copy(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    restart(grid, 3)
    agree(metrics(deploy(tmp_path, LINKED, grid).path), simulated(tmp_path, LINKED, r3=(0, 2)))


def test_a_node_that_lost_its_copy_is_sent_the_whole(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    lose_disk(grid, 3, tmp_path)
    deployed = metrics(deploy(tmp_path, LINKED, grid).path)
    assert accuracies(deployed) == accuracies(simulated(tmp_path, LINKED, r3=(0, 2)))


def test_messages_of_a_round_that_lost_all_miners_are_taken_back(tmp_path: Path) -> None:
    """Done again, the round does not call their function."""
    config = {**LINKED, "algorithm": {"name": "FedAMD", "p": 0.6}, "seed": 1, "rounds": 3}
    grid, lost = federation(tmp_path / "nodes", 3), list[int]()

    def die(message: Message) -> None:
        if trains(message) == 1 and "miner" in str(from_records(message.content, 2**30).values.get("function")):
            lost.append(1)
            raise ConnectionError("lost")

    for node in grid.nodes.values():
        node.before = die
    deploy(tmp_path, config, grid, retries=0, minimum=0.3)
    assert lost


def test_a_server_that_died_sends_whole_copies_once_more(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[102].after = in_round(4, kill)
    with pytest.raises(Killed):
        deploy(tmp_path, LINKED, grid)
    grid = reborn(grid)
    sent = counting(grid)
    agree(metrics(deploy(tmp_path, LINKED, grid).path), simulated(tmp_path, LINKED))
    assert [call.size == max(sent, key=lambda call: call.size).size for call in sent] == [True] * 3 + [False] * 6


def test_a_round_that_is_done_again() -> None:
    """A client whose copy moved by a message that was taken back receives the whole; one that has it, nothing."""
    copies = Copies(Memories(torch.zeros(10), lambda handle: torch.zeros(10)))
    whole = bytes(40)

    def sends(client: int) -> list[bytes]:
        return list(copies.update("f", client, whole)[1].values())

    copies.publish("f", whole, 40)
    assert sends(0) == sends(1) == [whole]
    for client in (0, 1):
        copies.arrived("f", client, f"1.{client}", [VECTOR])
    before = copies.snapshot()
    copies.publish("f", b"one", 40)
    assert sends(0) == [b"one"] and copies.update("f", 0, whole)[0] == ["1.0.256"]
    copies.arrived("f", 0, "1.2", [VECTOR])
    copies.restore(before)
    copies.publish("f", b"one", 40)
    copies.publish("f", b"two", 40)
    assert sends(0) == [b"two"] and sends(1) == [b"one", b"two"]
    copies.restore(before)
    copies.publish("f", b"other", 40)
    assert sends(0) == [whole] and sends(1) == [b"other"]


def test_no_more_is_kept_than_is_ever_sent() -> None:
    copies = Copies(Memories(torch.zeros(10), lambda handle: torch.zeros(10)))
    copies.publish("f", bytes(40), 40)
    copies.arrived("f", 0, "1.0", [VECTOR])
    for k in range(3):
        copies.publish("f", bytes(12), 40)
        assert len(copies.update("f", 0, bytes(40))[1]) == k + 1
    copies.publish("f", bytes(12), 40)
    assert copies.update("f", 0, bytes(40)) == ([], {"down": bytes(40)})
    assert len(copies._steps["f"]) == 4                    # a base, and three messages
