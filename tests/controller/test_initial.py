"""A run begins with the model in a file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithms import DPSGD, FedAvg
from fedsim import Evaluation, Experiment, resume, run, trained_model
from fedsim.cli import main
from fedsim.controller.prepare import prepare
from fedsim.errors import ConfigError, FedsimError, RunError
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.config.paths import absolute, paths
from fedsim.models import MLP
from fedsim.record.directory import open_run
from tests.controller.test_run import SMALL, metrics
from topologies import Ring, Static

BASE = replace(SMALL, algorithm=FedAvg(), rounds=2, evaluation=Evaluation(every=1))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_run_goes_on_with_an_exported_model(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(BASE, output=tmp_path / "first", progress=False)
    file = tmp_path / f"model.{suffix}"
    assert main(["export", str(first.path), "--output", str(file)]) == 0
    config = first.path / "config.yaml"
    argv = ["run", str(config), "--init", str(file), "--output", str(tmp_path / "next"), "--seeds", "2", "--quiet"]
    assert main(argv) == 0
    following = open_run(tmp_path / "next")
    last = metrics(first).series("server/test", "loss")[2]
    for seed in (0, 1):  # whose own initial models differ
        assert metrics(following, seed).series("server/test", "loss")[0] == last
    assert following.manifest["init_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert following.config["init"] == str(file) and first.config["init"] is None
    assert "init_hash" not in first.manifest
    capsys.readouterr()


def test_a_plain_state_dict_with_buffers_and_frozen_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 10))
    source.get_buffer("2.running_mean").fill_(0.5)
    torch.save(source.state_dict(), tmp_path / "model.pth")
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 10))
    target.get_parameter("1.weight").requires_grad_(False)
    mine = replace(BASE, model=target, init=tmp_path / "model.pth")  # type: ignore[arg-type]  # a Path does as well
    module = prepare(mine, 3).federation.model.module
    for name, tensor in source.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name
    assert not torch.equal(target.get_parameter("1.weight"), source.get_parameter("1.weight")), "the user's own stays"
    double = prepare(replace(mine, dtype="float64"), 0).federation.model.module
    assert double.get_parameter("3.bias").dtype == torch.float64
    gossip = replace(mine, algorithm=DPSGD(), topology=Static(Ring()))
    x = prepare(gossip, 0).federation.model.vector()
    assert torch.equal(x[:8], source.get_parameter("1.bias"))


def state(**changed: Tensor | None) -> dict[str, Tensor]:
    own = prepare(BASE, 0).federation.model.module.state_dict()
    return {name: t.clone() for name, t in {**own, **changed}.items() if t is not None}


def test_what_is_no_initial_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    name = next(iter(state()))

    def refused(kind: type[FedsimError], words: str, path: Path = file) -> None:
        with pytest.raises(kind, match=words):
            run(replace(BASE, init=str(path)), output=tmp_path / "never", progress=False)
        assert not (tmp_path / "never").exists()

    refused(ConfigError, r"init: cannot read .*model\.safetensors")
    save_file(state(**{name: None}), file)
    refused(ConfigError, f"is not a state_dict of this Sequential: it lacks {name}. Expected the names and shapes")
    save_file(state(extra=torch.zeros(2)), file)
    refused(ConfigError, "it has extra. Expected")
    save_file(state(**{name: torch.zeros(3, 4)}), file)
    refused(ConfigError, rf"its {name} is \[3, 4\] instead of \[16, 64\]")
    file.write_bytes(b"no tensors")
    refused(ConfigError, "is not a file of tensors")
    refused(ConfigError, "is a folder; expected a file. Of a run: fedsim export", tmp_path)
    torch.save({"model": state(), "epoch": 3}, tmp_path / "all.pt")
    refused(ConfigError, "holds the keys model, epoch; expected a state_dict", tmp_path / "all.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    refused(ConfigError, "is not a file of tensors .*Weights only load failed", tmp_path / "module.pt")
    (tmp_path / "notes.txt").write_text("hello\n")        # as pickle: look up what was never stored
    refused(ConfigError, "is not a file of tensors", tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"(?s)init is \{.*expected the path of a file"):
        replace(BASE, init=state())  # type: ignore[arg-type]


def test_resume_and_export_need_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(state(), file)
    begun = replace(BASE, init=str(file))
    made = run(begun, output=tmp_path / "made", progress=False)
    longer = run(replace(begun, rounds=3), output=tmp_path / "longer", progress=False)
    resume(made.path, rounds=3, progress=False)
    paths = [(d.seed_path(0) / "metrics.jsonl").read_bytes() for d in (made, longer)]
    assert paths[0] == paths[1]
    trained_model(made)
    save_file({name: t + 1 for name, t in state().items()}, file)
    with pytest.raises(RunError, match=r"made began with .*model\.safetensors with hash .*; restore it"):
        resume(made.path, rounds=4, progress=False)
    assert made.config["rounds"] == 3
    with pytest.raises(RunError, match="restore it"):
        trained_model(made)


def test_the_path_of_the_experiment_is_absolute_and_no_other_init() -> None:
    given = {"init": "m.pt", "model": {"init": "zeros", "path": "a"}, "data": [{"my_path": "b"}]}
    whole = {"init": "/base/m.pt", "model": {"init": "zeros", "path": "/base/a"}, "data": [{"my_path": "/base/b"}]}
    assert absolute(given, Path("/base")) == whole
    assert list(paths(given)) == ["m.pt", "a", "b"]
    experiment = Experiment(FedAvg(), model=MLP(), init="/base/m.pt")
    assert from_config(to_config(experiment)) == experiment
