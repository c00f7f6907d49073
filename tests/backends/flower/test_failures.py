"""Nodes that fail: the round goes on by the policy, and what clients remember never gets out of step with the server.

The oracle of a round without some client is the simulation with just that cohort.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from torch import Tensor

import fedsim
from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.protocol.calls import from_records
from fedsim.errors import DeployError, RunError
from fedsim.experiment.config import from_config
from fedsim.record import checkpoint
from fedsim.record.metrics import read_metrics
from tests.backends.flower.grids import FakeGrid, Node, federation
from tests.backends.flower.test_parity import CONFIG, EF14, RING, agree, deploy, metrics
from tests.checkpoints import tensors

ROUNDS = 4
CONFIG = {**CONFIG, "rounds": ROUNDS, "evaluation": {"every": 1}}
EF21 = {"name": "EF21", "lr": 0.1, "compressor": {"name": "TopK", "fraction": 0.1}}


@dataclass(frozen=True)
class Given:
    """Cohorts by round; everybody in the others."""

    cohorts: tuple[tuple[int, tuple[int, ...]], ...]

    def cohort(self, seed: int, round: int, n: int) -> np.ndarray:
        return np.array(dict(self.cohorts).get(round, range(n)))

    def expected(self, n: int) -> float:
        return float(n)


def simulated(folder: Path, config: dict[str, Any], **cohorts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Metrics of the simulation in which rounds ``r2=(0, 2)`` have such cohorts."""
    rounds = tuple((int(name[1:]), ids) for name, ids in cohorts.items())
    experiment = replace(from_config(config), sampling=Given(rounds))
    return metrics(fedsim.run(experiment, output=folder / "simulated", progress=False).path)


def trains(message: Message) -> int:
    """The round of a message that asks for work; 0 for others."""
    return int(message.metadata.group_id) if message.metadata.message_type == "train" else 0


def in_round(number: int, fate: Callable[[Message], Message | None]) -> Callable[[Message], Message | None]:
    """``fate`` for answers to work in one round."""
    return lambda answer: fate(answer) if trains(answer) == number else answer


def vanish(answer: Message) -> Message:
    """Flower's error for a node that computed its answer, and then died."""
    return Message(Error(5, "node unavailable"), metadata=answer.metadata)


class Killed(BaseException):
    """The server was killed."""


def kill(answer: Message) -> Message:
    """The server dies when it gets an answer."""
    raise Killed


def reborn(grid: FakeGrid) -> FakeGrid:
    """The same nodes under other ids, as another server sees them."""
    return FakeGrid({500 + i: Node(node.config) for i, node in enumerate(grid.nodes.values())})


def lose_disk(grid: FakeGrid, number: int, folder: Path) -> None:
    """What client 1's node has stored is deleted in a round, once."""
    done = list[int]()

    def empty(message: Message) -> None:
        if trains(message) == number and not done:
            done.append(number)
            shutil.rmtree(folder / "nodes/node-1")

    grid.nodes[101].before = empty


def restart(grid: FakeGrid, number: int) -> None:
    """Client 1's node is killed in a round, and comes back under another id."""

    def die(message: Message) -> None:
        if trains(message) == number:
            grid.nodes[101].online = False
            grid.nodes[777] = Node(grid.nodes[101].config)
            raise ConnectionError("killed")

    grid.nodes[101].before = die


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients keep their memories when the run has ended."""
    monkeypatch.setattr(NodeStore, "forget", lambda self: None)


def drift_of_ef21(folder: Path) -> float:
    """Relative distance of the server's g to the mean of what the clients hold as g_i, by the last checkpoint."""
    loaded = checkpoint.load_latest(folder / "deployed/seed-0/checkpoints")
    assert loaded is not None
    run = json.loads((folder / "deployed/manifest.json").read_text())["deployment"]["run"]
    kept, held = [], tensors(loaded)
    for i in range(3):
        saved = bytes(held[f"g_i.{i}.0"].numpy()).decode()
        client, name, _ = json.loads(saved.removeprefix("fedsim memory "))
        assert client == i
        kept.append(NodeStore(folder / f"nodes/node-{i}", run, i).read(name).double())
    g: Tensor = held["g.0"].double()
    return float((g - torch.stack(kept).mean(0)).norm() / g.norm())


@pytest.mark.parametrize("algorithm", [EF21, "Scaffold"], ids=["EF21", "SCAFFOLD"])
def test_a_lost_answer_is_asked_for_again(algorithm: Any, tmp_path: Path) -> None:
    """The client has already stored a memory that nobody heard of."""
    grid = federation(tmp_path / "nodes", 3)
    lost: list[int] = []

    def once(answer: Message) -> Message:
        lost.append(1)
        return vanish(answer) if len(lost) == 1 else answer

    grid.nodes[101].after = in_round(2, once)
    deploy(tmp_path, {**CONFIG, "algorithm": algorithm}, grid)
    assert len(lost) == 2
    agree(metrics(tmp_path / "deployed"), simulated(tmp_path, {**CONFIG, "algorithm": algorithm}))


@pytest.mark.parametrize("algorithm", [EF21, "Scaffold", "FedSpeed"], ids=["EF21", "SCAFFOLD", "FedSpeed"])
@pytest.mark.usefixtures("kept")
def test_a_round_goes_on_without_a_client_whose_answer_is_lost(algorithm: Any, tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[101].after = in_round(2, vanish)
    deploy(tmp_path, {**CONFIG, "algorithm": algorithm}, grid, retries=0)
    agree(metrics(tmp_path / "deployed"), simulated(tmp_path, {**CONFIG, "algorithm": algorithm}, r2=(0, 2)))
    timing = read_metrics(tmp_path / "deployed/seed-0/timing.jsonl")
    skipped = timing.metric == "skipped"
    assert list(zip(timing.round[skipped], timing.node[skipped], strict=True)) == [(2, 1)]
    if algorithm is EF21:
        assert drift_of_ef21(tmp_path) < 1e-6


@pytest.mark.parametrize("name", ["FedPAGE", "MARINA"])
def test_a_round_of_the_whole_population_goes_on_without_a_client(name: str, tmp_path: Path) -> None:
    """Of the cohort or not; with p = 1 these methods are gradient descent on those who answer."""
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[101].after = lambda answer: vanish(answer) if trains(answer) > 1 else answer
    full = {"name": "DCGD", "lr": 0.1, "compressor": "Identity"}
    step = {"server_lr": 0.1} if name == "FedPAGE" else {"lr": 0.1}
    config = {**CONFIG, "algorithm": {"name": name, "p": 1.0, **step}, "sampling": {"size": 1}}
    deploy(tmp_path, config, grid, retries=0, patience=0.1)
    without = {f"r{round}": (0, 2) for round in range(2 + (name == "MARINA"), ROUNDS + 1)}
    simulated(tmp_path, {**CONFIG, "algorithm": full}, **without)
    losses = [
        read_metrics(tmp_path / f"{kind}/seed-0/metrics.jsonl").series("server/test", "loss")
        for kind in ("deployed", "simulated")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    timing = read_metrics(tmp_path / "deployed/seed-0/timing.jsonl")
    assert set(timing.node[timing.metric == "skipped"]) == {1}
    with pytest.raises(DeployError, match=r"client 1 .*; 2 of 3 clients are left, and the policy needs 3"):
        again = federation(tmp_path / "strict", 3)
        again.nodes[101].after = grid.nodes[101].after
        deploy(tmp_path / "strict", config, again, retries=0, patience=0.1, missing="stop")


def test_a_round_with_two_exchanges_is_done_again_without_asking_twice(tmp_path: Path) -> None:
    """DFedSAM: the local work of the others counts, only the mixing is another."""
    grid = federation(tmp_path / "nodes", 3)

    def mixing(answer: Message) -> Message:
        return vanish(answer) if from_records(answer.content, 2**20).verb == "mix" else answer

    grid.nodes[102].after = in_round(3, mixing)
    config = {**CONFIG, "algorithm": "DFedSAM", "topology": RING}
    deploy(tmp_path, config, grid, retries=0)
    agree(metrics(tmp_path / "deployed"), simulated(tmp_path, config, r3=(0, 1)))
    works = [message for message in grid.nodes[100].asked if message == "train"]
    assert len(works) == 2 * ROUNDS + 1                    # a second mixing, no second work


@pytest.mark.usefixtures("kept")
def test_a_restarted_node_has_its_memory(tmp_path: Path) -> None:
    """Without a key, a SuperNode comes back under another id."""
    grid = federation(tmp_path / "nodes", 3)
    restart(grid, 2)
    deploy(tmp_path, {**CONFIG, "algorithm": EF21}, grid)
    agree(metrics(tmp_path / "deployed"), simulated(tmp_path, {**CONFIG, "algorithm": EF21}, r2=(0, 2)))
    assert drift_of_ef21(tmp_path) < 1e-6


def test_a_restarted_node_is_welcome_once_the_old_one_has_gone(tmp_path: Path) -> None:
    """Flower takes a node that was killed for connected until its next heartbeat is due."""
    grid = federation(tmp_path / "nodes", 3)

    def go_on(message: Message) -> None:
        if trains(message) == 2:
            grid.nodes[777] = Node(grid.nodes[101].config)
        grid.nodes[101].online = trains(message) < 3

    def die(message: Message) -> None:
        if trains(message) >= 2:
            raise ConnectionError("killed")

    grid.nodes[100].before, grid.nodes[101].before = go_on, die
    deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg", "rounds": 6}, grid)
    assert grid.nodes[777].asked.count("train") >= 3
    assert grid.nodes[777].asked.count("query") == 2       # it was refused once


def test_one_who_joins_late(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[102].online = False

    def arrive(message: Message) -> None:
        if trains(message) == 2:
            grid.nodes[102].online = True

    grid.nodes[100].before = arrive
    deploy(tmp_path, {**CONFIG, "algorithm": "FedSpeed"}, grid, patience=0.3)
    expected = simulated(tmp_path, {**CONFIG, "algorithm": "FedSpeed"}, r1=(0, 1), r2=(0, 1))
    agree(metrics(tmp_path / "deployed"), expected)


def test_one_who_never_answers(tmp_path: Path) -> None:
    grid, log = federation(tmp_path / "nodes", 3), tmp_path / "server.log"
    grid.nodes[102].after = in_round(2, lambda answer: None)
    deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg"}, grid, timeout=1.0, log=str(log))
    expected = simulated(tmp_path, {**CONFIG, "algorithm": "FedAvg"}, r2=(0, 1), r3=(0, 1), r4=(0, 1))
    got = [row for row in metrics(tmp_path / "deployed") if not row["scope"].startswith("clients/")]
    agree(got, [row for row in expected if not row["scope"].startswith("clients/")])
    assert grid.nodes[102].asked.count("train") == 2       # the timeout is waited for once, not in every round
    told = [line for line in log.read_text().splitlines() if "missing" in line]
    assert told == ["round 2: 1 client missing: 2", "seed 0: 1 client missing in 3 of 4 rounds: 2"]
    rows = read_metrics(tmp_path / "deployed/seed-0/metrics.jsonl")
    assert rows.series("clients/train", "scored") == {4: 2}


def test_the_policy_can_be_to_stop(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[101].after = in_round(2, vanish)
    with pytest.raises(DeployError, match=r"round 2: client 1 failed .*; 2 of 3 clients are left, .* needs 3"):
        deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg"}, grid, missing="stop", patience=1.0)
    status = json.loads((tmp_path / "deployed/manifest.json").read_text())["status"]["0"]
    assert status["state"] == "failed" and "client 1" in status["detail"]


def test_one_who_is_late_every_time_is_waited_for_once(tmp_path: Path) -> None:
    """Its answer comes when nobody waits for it any more, and so it is welcomed again."""
    grid, asked = federation(tmp_path / "nodes", 3), list[str]()

    def late(answer: Message) -> Message | None:
        asked.append(answer.metadata.reply_to_message_id)
        assert len(set(asked)) < 4, "it is asked again and again"
        return answer if asked.count(asked[-1]) > 1 else None

    def say(text: str) -> None:
        if "waiting" in text:
            grid.lost.clear()                              # the answers come now

    grid.nodes[101].after = in_round(2, late)
    with pytest.raises(DeployError, match=r"client 1 did not answer within 0.5 s; 2 of 3 clients are left, .* needs 3"):
        deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg"}, grid, missing="stop", timeout=0.5, patience=5.0, say=say)
    assert len(set(asked)) == 2


def test_too_few_at_the_start(tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    grid.nodes[100].online = grid.nodes[102].online = False
    with pytest.raises(DeployError, match=r"1 of 3 clients connected within 0.2 s, and 2 are needed; missing: 0, 2"):
        deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg"}, grid, patience=0.2)
    assert not (tmp_path / "deployed").exists()            # nothing is left behind


@pytest.mark.parametrize(
    ("algorithm", "why"), [("ExactDiffusion", "needs every node"), ("FedAMD", "begins with a message")]
)
def test_an_algorithm_that_needs_everybody(algorithm: str, why: str, tmp_path: Path) -> None:
    grid = federation(tmp_path / "nodes", 3)
    config = {**CONFIG, "algorithm": algorithm}
    config |= {"topology": RING} if algorithm == "ExactDiffusion" else {}
    grid.nodes[102].after = lambda answer: vanish(answer) if answer.metadata.message_type == "train" else answer
    with pytest.raises(DeployError, match=f"(?s)client 2.*{why}|{why}.*client 2"):
        deploy(tmp_path, config, grid, retries=0)


DIED: dict[str, dict[str, Any]] = {
    "EF21": {"algorithm": EF21},
    "FedAMD": {"algorithm": "FedAMD"},
    "DFedSAM": {"algorithm": "DFedSAM", "topology": RING},
    "memories of a link, which one client never made": {"algorithm": "FedAvg", "uplink": EF14, "sampling": {"size": 1}},
}


@pytest.mark.parametrize("case", DIED)
@pytest.mark.slow
def test_a_server_that_died_goes_on_from_its_checkpoint(case: str, tmp_path: Path) -> None:
    """It dies when the clients have stored what it never heard."""
    config = {**CONFIG, **DIED[case]}
    grid = federation(tmp_path / "nodes", 3)
    for node in grid.nodes.values():
        node.after = in_round(3, kill)
    with pytest.raises(Killed):
        deploy(tmp_path, config, grid)
    with pytest.raises(RunError, match=r"was deployed, and its clients hold their own memories; .* --resume"):
        fedsim.resume(tmp_path / "deployed", progress=False)
    grid = reborn(grid)
    deploy(tmp_path, config, grid)
    expected = fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False)
    agree(metrics(tmp_path / "deployed"), metrics(expected.path))
    assert json.loads((tmp_path / "deployed/manifest.json").read_text())["deployment"]["epoch"] == 2
    assert not [kind for kind in grid.nodes[500].asked if kind == "evaluate"][1:]   # no second initialisation


def test_a_memory_that_was_damaged_or_lost_is_named(tmp_path: Path) -> None:
    grid, said = federation(tmp_path / "nodes", 3), list[str]()

    def damage(message: Message) -> None:
        if trains(message) == 2:
            (path,) = (tmp_path / "nodes/node-0").rglob("1.1.0.safetensors")
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    def lose(message: Message) -> None:
        if trains(message) == 3:
            for path in (tmp_path / "nodes/node-1").rglob("*.safetensors"):
                path.unlink()

    grid.nodes[100].before, grid.nodes[101].before = damage, lose
    with pytest.raises(DeployError, match="the policy needs 2"):
        deploy(tmp_path, {**CONFIG, "algorithm": "Scaffold"}, grid, say=said.append, patience=1.0)
    assert any("round 2: client 0 refused: memory" in line and "does not match its checksum" in line for line in said)
    assert any("round 3: client 1 refused: memory 1.2.0 is not there" in line for line in said)
