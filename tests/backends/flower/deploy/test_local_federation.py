"""Real processes on the loopback interface, with TLS and keys: one federation for all that can share it.

Slow, as a message takes Flower six seconds and a node works on one at a time. With FEDSIM_LONG=1 in the environment
five algorithms make five rounds instead of two algorithms two, and there is a node that is killed while the others go
on (Flower takes a minute to notice).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

import fedsim
from fedsim.backends.flower.deploy import processes
from fedsim.backends.flower.deploy.app import write_app
from fedsim.backends.flower.deploy.certificates import make
from fedsim.backends.flower.deploy.local_federation import LocalFederation
from fedsim.backends.flower.deploy.ports import free
from fedsim.backends.flower.protocol.node_settings import NodeSettings
from fedsim.experiment.config import from_config

LONG = bool(os.environ.get("FEDSIM_LONG"))
pytestmark = [pytest.mark.flower, pytest.mark.timeout(3600)]   # on a machine that is busy with other things
ROUNDS = 5 if LONG else 2
ALGORITHMS: dict[str, dict[str, Any]] = {
    "EF21": {"algorithm": {"name": "EF21", "lr": 0.5, "compressor": {"name": "TopK", "fraction": 0.05}}},
    "DFedSAM": {"algorithm": "DFedSAM", "topology": {"name": "Static", "graph": "Ring"}},
}
if LONG:
    ALGORITHMS |= {name: {"algorithm": name} for name in ("FedAMD", "FedSpeed", "Scaffold")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits as an npz file, which a node's process reads faster than it imports scikit-learn."""
    made = tmp_path_factory.mktemp("federation")
    digits = load_digits()
    np.savez(made / "digits.npz", x=digits.images[:900].astype(np.float32) / 16, y=digits.target[:900])
    return made


def config_of(folder: Path, name: str, **others: Any) -> dict[str, Any]:
    return {
        "data": {"name": "npz", "path": str(folder / "digits.npz")},
        "partition": {"name": "DirichletPartitioner", "num_partitions": 3, "alpha": 0.5},
        "model": {"name": "MLP", "hidden": [16]},
        "local": {"batch_size": 32, "steps": 3},
        "sampling": {"fraction": 1.0},
        "rounds": ROUNDS,
        "evaluation": {"every": ROUNDS},
        "backend": "loop",
        **ALGORITHMS[name],
        **others,
    }


def settings(folder: Path) -> list[NodeSettings]:
    return [NodeSettings(i, folder / f"memory-{i}", files=(folder / "digits.npz",)) for i in range(3)]


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[LocalFederation]:
    federation = LocalFederation(folder / "processes", settings(folder), port=0)
    with federation:
        yield federation
    assert not [mark for mark in processes.marked().values() if str(folder) in mark], "processes are left"


def start(federation: LocalFederation, folder: Path, name: str, **config: Any) -> str:
    """Submit a run; its id."""
    text = yaml.safe_dump(config_of(folder, name))
    patient = {"output": str(folder / name), "patience": 600.0, **config}
    app = write_app(folder / f"app-{name}", {"experiment": text, **patient})
    return str(federation.flwr("run", str(app))["run-id"])


def wait(federation: LocalFederation, run_id: str) -> dict[str, Any]:
    """Flower's description of a run that has ended."""
    end = time.monotonic() + 3000
    while time.monotonic() < end:
        run: dict[str, Any] = federation.flwr("list", "--run-id", run_id)["runs"][0]
        if run["status"].startswith("finished"):
            return run
        time.sleep(3)
    raise AssertionError(f"run {run_id} has not ended")


def final(path: Path, last: int = ROUNDS) -> dict[tuple[str, str], float]:
    """Measurements of the last round."""
    lines = (path / "seed-0/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {(r["scope"], r["metric"]): r["value"] for r in rows if r["round"] == last and r["node"] is None}


def test_parity_over_tls_with_keys(running: LocalFederation, folder: Path) -> None:
    """Several algorithms at once; a node with a strange key and one that trusts another authority are kept out."""
    strangers = make(folder / "strangers", 3)
    intruder = running.supernode(NodeSettings(2, folder / "intruder"), free(1)[0])
    key = intruder.command.index("--auth-supernode-private-key") + 1
    intruder.command[key] = str(strangers.node(2))
    doubter = running.supernode(NodeSettings(1, folder / "doubter"), free(1)[0])
    doubter.command[doubter.command.index("--root-certificates") + 1] = str(strangers.ca)
    intruder.log, doubter.log = folder / "intruder.log", folder / "doubter.log"
    intruder.start(), doubter.start()
    try:
        runs = {name: start(running, folder, name) for name in ALGORITHMS}
        ended = {name: wait(running, run_id) for name, run_id in runs.items()}
    finally:
        processes.stop_all([intruder, doubter])
    for name, run in ended.items():
        assert run["status"] == "finished:completed", running.superlink.tail()
        simulation = fedsim.run(from_config(config_of(folder, name)), output=folder / f"sim-{name}", progress=False)
        deployed, simulated = final(folder / name), final(simulation.path)
        assert deployed == pytest.approx(simulated, abs=1e-6, rel=1e-6)
        for what in ("bytes_up", "bytes_down", "gradient_evaluations"):
            assert deployed["total", what] == simulated["total", what] > 0
    for kept_out in (intruder, doubter):
        assert "SuperNode ID" not in kept_out.log.read_text()


@pytest.mark.skipif(not LONG, reason="takes minutes; set FEDSIM_LONG=1")
def test_a_killed_node_comes_back_with_its_memory(running: LocalFederation, folder: Path) -> None:
    """It is killed in the middle of the run, and started again as a supervisor does, until Flower lets it in."""
    run_id = start(running, folder, "EF21", output=str(folder / "killed"))
    exchanges = folder / "killed/seed-0/exchanges.jsonl"
    end = time.monotonic() + 1200
    while not exchanges.exists():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)
    running.supernodes[1].kill()
    while (run := running.flwr("list", "--run-id", run_id)["runs"][0])["status"] in ("starting", "running"):
        assert time.monotonic() < end + 1200, run
        if running.supernodes[1].code is not None:
            running.supernodes[1].start()
        time.sleep(5)
    assert run["status"] == "finished:completed", running.superlink.tail()
    assert final(folder / "killed")["server/test", "loss"] < 3
