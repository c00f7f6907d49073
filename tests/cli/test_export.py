"""The trained model comes out: what plain PyTorch loads measures what the run recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from algorithms import DPSGD, FedAvg
from fedsim import Evaluation, Experiment, run, trained_model
from fedsim.cli import main
from fedsim.compress import TopK
from fedsim.controller.prepare import prepare
from fedsim.data import load
from fedsim.errors import ConfigError, RunError
from fedsim.feedback import EF14Uplink
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import read_metrics
from tests.controller.test_run import SMALL
from topologies import Ring, Static

BASE = replace(SMALL, algorithm=FedAvg(), rounds=2, evaluation=Evaluation(every=1))
GOSSIP = replace(BASE, algorithm=DPSGD(), topology=Static(Ring()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    folder = tmp_path_factory.mktemp("runs")
    cases = {
        "server": replace(BASE, seeds=2), "compressed": replace(BASE, uplink=EF14Uplink(TopK(0.1))), "gossip": GOSSIP,
    }  # fmt: skip
    return {name: run(experiment, output=folder / name, progress=False) for name, experiment in cases.items()}


def accuracy(module: nn.Module, experiment: Experiment = BASE, seed: int = 0) -> float:
    test = prepare(experiment, seed).test
    with torch.no_grad():
        return float((module(test.x).argmax(1) == test.y).float().mean())


def recorded(directory: RunDirectory, scope: str, seed: int = 0, node: int | None = None) -> Any:
    return pytest.approx(read_metrics(directory.seed_path(seed) / "metrics.jsonl").series(scope, "accuracy", node)[2])


class Same(nn.Sequential):
    """The network of the runs, written down by hand."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.names = names

    def take(self, state: dict[str, Tensor]) -> nn.Module:
        ours = self.state_dict()
        assert [t.shape for t in state.values()] == [t.shape for t in ours.values()]
        self.load_state_dict(dict(zip(ours, (state[name] for name in self.names), strict=True)))
        return self


def test_a_model_of_every_kind_of_run(made: dict[str, RunDirectory]) -> None:
    for seed in (0, 1):
        assert accuracy(trained_model(made["server"], seed), seed=seed) == recorded(made["server"], "server/test", seed)
    assert accuracy(trained_model(made["compressed"].path)) == recorded(made["compressed"], "server/test")
    assert accuracy(trained_model(made["gossip"]), GOSSIP) == recorded(made["gossip"], "average/test")
    assert accuracy(trained_model(made["gossip"], node=3), GOSSIP) == recorded(made["gossip"], "nodes/test", node=3)
    assert not trained_model(made["server"]).training


def test_a_model_of_parts_made_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = replace(BASE, rounds=1, data=load("digits"), metrics=[lambda outputs, targets: outputs.mean()])
    made = run(case, output=tmp_path / "run", progress=False)
    said = r"has a part made in Python \(data, metrics\), .* give its experiment: fedsim\.trained_model\('.*run', exp"
    with pytest.raises(ConfigError, match=said):
        trained_model(made)
    assert main(["export", str(made.path), "--output", str(tmp_path / "model.pt")]) == 2
    assert ", experiment=experiment)" in capsys.readouterr().err
    assert accuracy(trained_model(made, experiment=case), case) > 0


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_export_is_a_state_dict(
    suffix: str, made: dict[str, RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, source = tmp_path / "new" / f"model.{suffix}", made["server"]
    assert main(["export", str(source.path), "--output", str(file), "--seed", "1"]) == 0
    assert f"{file}: " in (said := capsys.readouterr().out) and "after round 2, 1,210 numbers" in said
    state = torch.load(file, weights_only=True) if suffix == "pt" else load_file(file)
    names = list(trained_model(source).state_dict())
    module = Same(names).take({name: state[name] for name in names})
    assert accuracy(module, seed=1) == recorded(source, "server/test", 1)
    assert main(["export", str(source.path), "--output", str(file)]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err


def test_what_cannot_be_exported(
    made: dict[str, RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"has no seed 7; expected one of 0, 1"):
        trained_model(made["server"], 7)
    with pytest.raises(ConfigError, match="has one model, at its server; leave out the node"):
        trained_model(made["server"], node=1)
    with pytest.raises(ConfigError, match="node is 10; expected 0 to 9"):
        trained_model(made["gossip"], node=10)
    with pytest.raises(RunError, match="is not a run"):
        trained_model(tmp_path)
    assert main(["export", str(made["server"].path), "--output", "model.onnx"]) == 2
    assert "expected a file named *.pt or *.safetensors" in capsys.readouterr().err
    mine = replace(BASE, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    own = run(mine, output=tmp_path / "own", progress=False)
    with pytest.raises(ConfigError, match="has a part made in Python"):
        trained_model(own)
    assert accuracy(trained_model(own, experiment=mine)) == recorded(own, "server/test")
