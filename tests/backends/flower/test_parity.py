"""A deployment is the simulation: every algorithm gives the same metrics, to the byte, ledger included.

Clients answer in this process, with Flower's own encoding of messages in between; ``test_processes.py`` has real ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fedsim
from algorithms import ALGORITHMS, LORA
from fedsim.algorithm import has_server
from fedsim.backends.flower.node.node_store import NodeStore
from fedsim.backends.flower.server.server_app import serve
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.config import from_config
from fedsim.record.metrics import read_metrics
from tests.backends.flower.grids import FakeGrid, federation

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "data": "digits",
    "partition": {"name": "DirichletPartitioner", "num_partitions": 3, "alpha": 0.5},
    "model": {"name": "MLP", "hidden": [8]},
    "local": {"batch_size": 32, "steps": 3},
    "sampling": {"fraction": 1.0},
    "schedule": {"name": "Exponential", "decay": 0.9},
    "rounds": 2,
    "evaluation": {"every": 1, "clients_every": 1},
    "backend": "loop",
}
RING = {"name": "Static", "graph": "Ring"}
TOP = {"name": "EF14", "compressor": {"name": "TopK", "fraction": 0.05}}
LOW = {"name": "Plain", "compressor": "LowPrecision"}
EF21P = {"name": "EF21P", "compressor": {"name": "TopK", "fraction": 0.1}}
EF14 = {"name": "EF14", "compressor": {"name": "TopK", "fraction": 0.1}}
KEPT = {**CONFIG["local"], "optimizer": {"name": "AdamW", "state": "keep"}}
JITTERED = {"name": "Chain", "then": "Jitter"}
TUNED = {"every": 1, "clients_every": 1, "holdout": 0.2, "unseen": 0.34, "fine_tune": 3, "fine_tune_lr": 0.1}
NEW = {**CONFIG["partition"], "min_partition_size": 20}
PARTS = {**CONFIG["local"], "step_schedule": "CosineSteps", "micro_batch": 10, "augment": "Mixup"}
PRODUCTS = {"name": "LoRA", "model": CONFIG["model"], "rank": 2, "targets": "1", "trained": "3"}
ADDED = {**PRODUCTS, "residual": True}
SOME = {"sampling": {"size": 2}, "rounds": 6}
OTHERS: dict[str, dict[str, Any]] = {
    "factors in turn, some clients": {"algorithm": "RoLoRA", "model": PRODUCTS, **SOME},
    "stacks of different ranks, some clients": {
        "algorithm": {"name": "FLoRA", "ranks": [2, 1]}, "model": ADDED, "local": KEPT, **SOME, "sampling": {"size": 1},
    },
    "differences, some clients, layers that stay": {
        "algorithm": "FedExLoRA", "model": ADDED, "share": "all but 3.bias", **SOME, "sampling": {"size": 1},
    },
    "different ranks": {"algorithm": {"name": "HetLoRA", "ranks": [2, 1]}, "model": PRODUCTS, **SOME},
    "initial values, factors in turn": {"algorithm": {"name": "EVA", "algorithm": "RoLoRA"}, "model": PRODUCTS, **SOME},
    "initial values, stacks": {"algorithm": {"name": "LoRAGA", "algorithm": "FLoRA"}, "model": ADDED, **SOME},
    "a local optimiser": {"algorithm": "FedSAM", "local": {**CONFIG["local"], "optimizer": "Adam"}},
    "an optimiser with memory": {"algorithm": "FedSpeed", "local": KEPT, "sampling": {"size": 2}, "rounds": 4},
    "gossip and an optimiser with memory": {
        "algorithm": {"name": "DFedAvg", "order": "CTA"}, "topology": RING, "local": KEPT, "uplink": {"name": "Choco"},
    },
    "an uplink and an optimiser with memory": {
        "algorithm": {"name": "Scaffold", "option": "I"}, "local": KEPT, "uplink": TOP, "downlink": EF21P, "rounds": 3,
    },
    "augmentation": {"algorithm": "FedAMD", "local": {**CONFIG["local"], "augment": JITTERED}},
    "steps of a schedule, in parts, on mixed samples": {"algorithm": "FedSAM", "local": PARTS},
    "DFedSAM with gossip steps": {"algorithm": {"name": "DFedSAM", "gossip_steps": 2}, "topology": RING},
    "an uplink with memory": {"algorithm": "Scaffold", "uplink": TOP, "sampling": {"size": 2}, "rounds": 4},
    "both links": {"algorithm": "FedAvg", "uplink": {**TOP, "name": "EControl"}, "downlink": LOW},
    "low precision up": {"algorithm": "FedAMD", "uplink": LOW},
    "compressed gossip": {"algorithm": "DFedSAM", "topology": RING, "uplink": {**TOP, "name": "Choco"}},
    "uplink EF14": {"algorithm": "Scaffold", "uplink": EF14, "sampling": {"size": 2}, "rounds": 3},
    "uplink EF21, downlink": {"algorithm": "FedAvg", "uplink": {"name": "EF21"}, "downlink": {"name": "Plain"}},
    "uplink EControl": {"algorithm": "FedAMD", "uplink": {"name": "EControl"}},
    "uplink Choco": {"algorithm": "DFedAvg", "topology": RING, "uplink": {"name": "Choco"}},
    "a public copy": {"algorithm": "FedAvg", "uplink": TOP, "downlink": EF21P, "sampling": {"size": 2}, "rounds": 5},
    "public copies": {"algorithm": "Scaffold", "downlink": EF21P, "sampling": {"size": 2}, "rounds": 4},
    "several public copies": {"algorithm": "FedAMD", "downlink": EF21P, "rounds": 3},
    "partial cohorts": {"algorithm": "Scaffold", "sampling": {"size": 2}, "rounds": 4},
    "gossip of some": {"algorithm": "DFedAvg", "topology": RING, "sampling": {"size": 2}, "rounds": 4},
    "weights by samples": {"algorithm": "FedSpeed", "weights": "samples"},
    "gossip, weights by samples": {"algorithm": "DFedSAM", "topology": RING, "weights": "samples"},
    "two seeds": {"algorithm": "FedSpeed", "seeds": 2, "rounds": 2},
    "a holdout": {"algorithm": "FedAvg", "evaluation": {"every": 1, "clients_every": 1, "holdout": 0.2}},
    "a rule with memory": {"algorithm": "Scaffold", "aggregate": {"name": "CenteredClipping", "tau": 0.5}, "rounds": 3},
    "a rule, and an uplink": {"algorithm": "FedAvg", "aggregate": {"name": "TrimmedMean", "f": 1}, "uplink": EF14},
    "momentum of workers": {"algorithm": "FedAvg", "aggregate": "CoordinateMedian", "uplink": "WorkerMomentum"},
    "gossip by a rule": {"algorithm": "DFedAvg", "topology": RING, "aggregate": "MoNNA"},
    "gossip steps by a rule that draws": {
        "algorithm": {"name": "DFedSAM", "gossip_steps": 2}, "topology": RING,
        "aggregate": {"name": "Bucketing", "rule": "CoordinateMedian"},
    },
    "gossip by a rule, with momentum": {
        "algorithm": {"name": "DPSGD", "momentum": 0.9}, "topology": RING, "weights": "samples",
        "aggregate": {"name": "SelfCenteredClipping", "tau": 0.1},
    },
    "a rule on sums": {"algorithm": "EF21", "aggregate": "GeometricMedian", "downlink": None},
    "layers that stay": {"algorithm": "Scaffold", "share": "all but 3", "sampling": {"size": 2}, "rounds": 4},
    "layers in turns, and withheld samples": {
        "algorithm": "FedAvg", "share": {"layers": "all but 3", "train": "alternate"}, "rounds": 3,
        "evaluation": {"every": 1, "clients_every": 1, "holdout": 0.2},
    },
    "layers that stay, an optimiser with memory, and links": {
        "algorithm": "FedSAM", "share": "3", "local": KEPT, "uplink": EF14, "downlink": EF21P, "sampling": {"size": 2},
        "rounds": 4,
    },
    "fine-tuning, and newcomers": {"algorithm": "FedAvg", "evaluation": TUNED, "partition": NEW},
    "personal models, fine-tuning, newcomers": {
        "algorithm": "Ditto", "evaluation": TUNED, "partition": NEW, "sampling": {"size": 1}, "rounds": 3,
    },
    "personal models, and an optimiser with memory": {"algorithm": "Ditto", "local": KEPT, "sampling": {"size": 2}},
    "layers that stay, fine-tuning, newcomers": {
        "algorithm": "Scaffold", "evaluation": TUNED, "share": "all but 3", "partition": NEW, "sampling": {"size": 1},
    },
    "float64": {"algorithm": "FedAMD", "dtype": "float64"},
    "bfloat16": {"algorithm": "FedSpeed", "precision": "bf16"},
    "a convolutional model": {"algorithm": "Scaffold", "model": "McMahanCNN", "rounds": 1},
}  # fmt: skip


OF_CLIENTS = ("clients/", "personal/", "tuned/", "unseen/", "unseen_tuned/")


def config_of(algorithm: str) -> dict[str, Any]:
    gossips = any(cls.__name__ == algorithm and not has_server(cls) for cls in ALGORITHMS)
    if any(cls.__name__ == algorithm for cls in LORA):
        return {"algorithm": algorithm, "model": ADDED if algorithm in ("FLoRA", "FedExLoRA", "LoRAGA") else PRODUCTS}
    return {"algorithm": algorithm, **({"topology": RING} if gossips else {})}


CATALOGUE = {cls.__name__: config_of(cls.__name__) for cls in ALGORITHMS}
CASES = CATALOGUE | OTHERS


def deploy(
    folder: Path,
    config: dict[str, Any],
    grid: FakeGrid | None = None,
    say: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> fedsim.RunDirectory:
    """Deploy an experiment on a grid of three nodes in this process."""
    grid = grid or federation(folder / "nodes", 3)
    run_config = {"experiment": yaml.safe_dump(config), "output": str(folder / "deployed"), "patience": 5.0}
    return serve(grid, {**run_config, **settings}, say=say)


def metrics(folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    lines = (folder / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def agree(deployed: list[dict[str, Any]], simulated: list[dict[str, Any]]) -> None:
    """Equal rows; clients score a model on their own samples alone, which may round differently than all at once."""
    for a, b in zip(deployed, simulated, strict=True):
        if a["scope"].startswith(OF_CLIENTS):
            assert a.pop("value") == pytest.approx(b.pop("value"), rel=1e-6)
        assert a == b


@pytest.mark.parametrize("case", CASES)
def test_the_same_metrics_as_the_simulation(case: str, tmp_path: Path) -> None:
    config = {**CONFIG, **CASES[case]}
    deployed = deploy(tmp_path, config)
    simulated = fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False)
    for seed in range(config.get("seeds", 1)):
        agree(metrics(deployed.path, seed), metrics(simulated.path, seed))
    assert len(metrics(deployed.path)) > 8 * config["rounds"]


class Dropping(nn.Module):
    """A module of one's own, with dropout and outputs in a dict."""

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(math.prod(input_shape), 8), nn.Dropout(0.4)
        self.last = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x.flatten(1)))
        return {"logits": self.last(self.drop(hidden)), "hidden": hidden}


def shrunk(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    """A loss of one's own, of several outputs."""
    return cross_entropy(outputs["logits"], y, reduction="none") + 0.01 * outputs["hidden"].square().sum(1)


def test_dropout_and_outputs_that_are_trees(tmp_path: Path) -> None:
    own = {"model": f"{__name__}.Dropping", "loss": f"{__name__}.shrunk"}
    config = {**CONFIG, "algorithm": "FedSAM", **own}
    deployed = deploy(tmp_path, config, federation(tmp_path / "nodes", 3, allow=__name__))
    simulated = fedsim.run(from_config(config), output=tmp_path / "simulated", progress=False)
    agree(metrics(deployed.path), metrics(simulated.path))


def test_data_made_in_python_is_refused_by_name(tmp_path: Path) -> None:
    """No file that nodes could read holds them."""
    with pytest.raises(ConfigError, match=r"data was made in Python \(Dataset 'texts'\), which a config file"):
        deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg", "data": {"python": "Dataset 'texts'"}})


def test_layers_that_stay_are_on_the_node_s_disk_alone(tmp_path: Path) -> None:
    """Files for their owner; no message to or from the server is as long as the model, and no memory is handed out."""
    grid = federation(tmp_path / "nodes", 3)
    kept: list[tuple[int, int]] = []

    class Watching(NodeStore):
        def write(self, name: str, value: Tensor) -> None:
            super().write(name, value)
            kept.append((value.numel(), self._path(name).stat().st_mode & 0o777))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsim.backends.flower.node.answer.NodeStore", Watching)
        deployed = deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg", "share": "3"}, grid)
    own, shared = 64 * 8 + 8, 8 * 10 + 10
    assert (own, 0o600) in kept and all(mode == 0o600 for _, mode in kept)
    rows = read_metrics(deployed.path / "seed-0" / "metrics.jsonl")
    assert rows.series("total", "bytes_up")[2] == 2 * 3 * (4 * shared + 7)
    assert len(rows.series("personal/train", "accuracy_mean")) == 3
    assert sum(p.numel() for p in fedsim.trained_model(deployed).parameters()) == own + shared
    with pytest.raises(RunError, match="was deployed, and the layers of client 1 stay with it; leave out the node"):
        fedsim.trained_model(deployed, node=1)


def test_personal_models_are_on_the_node_s_disk_alone(tmp_path: Path) -> None:
    """Ditto: what travels is FedAvg's, and the model of a client is handed to nobody."""
    sent = []
    for name in ("FedAvg", "Ditto"):
        grid = federation(tmp_path / name / "nodes", 3)
        deployed = deploy(tmp_path / name, {**CONFIG, "algorithm": name}, grid)
        sent.append(read_metrics(deployed.path / "seed-0" / "metrics.jsonl").series("total", "bytes_up")[2])
        assert not any("value" in node.asked for node in grid.nodes.values())
    assert sent[0] == sent[1]
    with pytest.raises(RunError, match="was deployed, and the model of client 1 stays with it; leave out the node"):
        fedsim.trained_model(deployed, node=1)


def test_simulated_attacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="attack is for simulations: the clients of a deployment are what they are"):
        deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg", "attack": {"name": "SignFlip", "share": 0.34}})
    assert not (tmp_path / "deployed").exists()


def test_what_the_ledger_charges_is_what_travels(tmp_path: Path) -> None:
    """FedAvg: one vector down and up for each of 3 clients in 3 rounds, and little else."""
    grid = federation(tmp_path / "nodes", 3)
    wide = {"model": {"name": "MLP", "hidden": [2000]}, "rounds": 3, "evaluation": {"every": 3}}
    deployed = deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg", **wide}, grid)
    d = deployed.manifest["parameters"]
    model_bytes = 4 * d + 7                                # version, dtype, one axis, its length
    rows = metrics(deployed.path)
    total = {row["metric"]: row["value"] for row in rows if row["scope"] == "total" and row["node"] is None}
    assert total["bytes_down"] == total["bytes_up"] == 9 * model_bytes
    score = 3 * model_bytes                                # the last round's model, scored by every client
    assert 18 * model_bytes + score < grid.sent_bytes < 1.02 * (18 * model_bytes + score)


def test_memories_stay_with_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions at most: that of the last state and checkpoint, and that of the checkpoint before."""
    monkeypatch.setattr(NodeStore, "forget", lambda self: None)
    deploy(tmp_path, {**CONFIG, "algorithm": "Scaffold", "rounds": 6})
    stores = [sorted(path.name for path in (tmp_path / f"nodes/node-{i}").rglob("*.safetensors")) for i in range(3)]
    assert stores == [["1.4.0.safetensors", "1.5.0.safetensors", "1.6.0.safetensors"]] * 3
    held = [path.read_bytes() for path in (tmp_path / "deployed").rglob("block-*.safetensors")]
    assert held and all(b"fedsim memory " in data and len(data) < 20_000 for data in held)


def test_exchanges_are_timed(tmp_path: Path) -> None:
    deploy(tmp_path, {**CONFIG, "algorithm": "FedAvg", "rounds": 4})
    rows = read_metrics(tmp_path / "deployed/seed-0/exchanges.jsonl")
    assert set(rows.metric) == {"load", "compute", "encode", "memory", "transport", "flower", "wall", "failed"}
    assert sorted(rows.series("exchange/each", "wall")) == [1, 2, 3, 4]
    assert all(value > 0 for value in rows.series("exchange/each", "compute").values())
