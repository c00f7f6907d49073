"""A run keeps the settings that determine its result: resuming refuses others, and damaged files are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from algorithms import FedAvg
from fedsim import Evaluation, Experiment, IidPartitioner, compare, resume, run
from fedsim.cli import main
from fedsim.controller import extend
from fedsim.errors import RunError
from fedsim.record.directory import RunDirectory
from tests.controller.test_run import SMALL, metrics_bytes

BASE = replace(SMALL, algorithm=FedAvg(), rounds=3, evaluation=Evaluation(every=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(BASE, output=tmp_path_factory.mktemp("runs") / "run", progress=False)


@pytest.fixture
def cut(finished: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A run that was interrupted before its first checkpoint."""
    made = RunDirectory(shutil.copytree(finished.path, tmp_path / "cut"))
    shutil.rmtree(made.seed_path(0) / "checkpoints")
    made.mark(0, "interrupted")
    return made


def edit(directory: RunDirectory, change: Callable[[dict[str, Any]], Any]) -> None:
    config = directory.config
    change(config)
    (directory.path / "config.yaml").write_text(yaml.safe_dump(config))        # with its settings in another order


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["algorithm"].update(lr=0.5),
        lambda config: config["local"].update(steps=7),
        lambda config: config.update(rounds=5),
        lambda config: config.update(init="model.pt"),
    ],
)
def test_edited_settings_are_refused(cut: RunDirectory, change: Callable[[dict[str, Any]], Any]) -> None:
    before = metrics_bytes(cut), cut.manifest
    edit(cut, change)
    with pytest.raises(RunError, match=r"config\.yaml has other settings than the run began with .* Set them back, or"):
        resume(cut.path, progress=False)
    assert (metrics_bytes(cut), cut.manifest) == before


def test_the_execution_may_be_edited(cut: RunDirectory, finished: RunDirectory) -> None:
    edit(cut, lambda config: config["execution"].update(threads=1, name="other"))
    resume(cut.path, progress=False)
    assert metrics_bytes(cut) == metrics_bytes(finished)


def test_a_run_of_an_earlier_version_has_no_hash(cut: RunDirectory) -> None:
    cut.update_manifest(settings_hash=None)
    edit(cut, lambda config: config["algorithm"].update(lr=0.5))
    assert resume(cut.path, progress=False).manifest["status"]["0"]["state"] == "finished"


def test_an_extended_run_keeps_its_settings(cut: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(extend, "write_atomic", killed)    # the manifest has the new number, config.yaml the old one
        resume(cut.path, rounds=4, progress=False)
    resume(cut.path, rounds=4, progress=False)
    assert cut.config["rounds"] == 4 and cut.manifest["status"]["0"]["state"] == "finished"
    cut.mark(0, "interrupted")
    edit(cut, lambda config: config.update(seed=9))
    with pytest.raises(RunError, match="other settings"):
        resume(cut.path, progress=False)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
@pytest.mark.parametrize("text", [b"{: [\n", b"", b"\xff\xfe\x00", b"[1]", b'{"seeds": '])
def test_a_damaged_file_is_named(
    name: str, text: bytes, cut: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cut.path / name).write_bytes(text)
    with pytest.raises(RunError, match=f"cannot read .*cut/{name}: "):
        compare(cut)
    for words in (["resume"], ["report", "--output", str(tmp_path / "r.html")], ["export", "--output", "m.pt"]):
        assert main([words[0], str(cut.path), *words[1:]]) == 1
        assert f"{name}: " in (said := capsys.readouterr().err) and said.count("\n") == 1 and "restore" in said


def test_a_file_cut_short_is_not_resumed(cut: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    (cut.path / "config.yaml").write_text("algorithm: {name: FedAvg}\nexecu")
    assert main(["resume", str(cut.path)]) == 1
    assert "cannot read" in capsys.readouterr().err
    (cut.path / "config.yaml").write_text("algorithm: {name: FedAvg}\nexecution: x\n")
    with pytest.raises(RunError, match=r"config\.yaml: execution is 'x'; restore"):
        compare(cut)
    (cut.path / "config.yaml").write_text("algorithm: {name: FedAvg}\n")
    assert main(["resume", str(cut.path)]) == 1
    assert "config.yaml: rounds is missing; restore the file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_sweep_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert main(["resume", str(tmp_path)]) == 1
    assert f"cannot read {tmp_path / 'sweep.json'}: " in capsys.readouterr().err


def test_a_changed_module_is_not_exported_or_resumed(
    cut: RunDirectory, finished: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut.update_manifest(parameters=7)
    made = RunDirectory(shutil.copytree(finished.path, tmp_path / "made"))
    edit(made, lambda config: config["model"].update(hidden=[17]))
    assert main(["export", str(made.path), "--output", str(tmp_path / "m.pt")]) == 1
    assert "parameters, and the module found now has" in capsys.readouterr().err and not (tmp_path / "m.pt").exists()
    with pytest.raises(RunError, match="has trained a model of 7 parameters, and the module found now has 1,210; rest"):
        resume(cut.path, progress=False)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_unwritable_place_is_one_error(
    suffix: str, finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished.path), "--output", f"/proc/x.{suffix}"]) == 2
    assert f"cannot write /proc/x.{suffix}: " in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_the_model_of_an_earlier_round_is_not_exported_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(BASE.with_execution(checkpoint_every=2), output=tmp_path / "run", progress=False)
    (made.seed_path(0) / "checkpoints/round-000003/shard-00000.safetensors").write_bytes(b"")
    assert main(["export", str(made.path), "--output", str(tmp_path / "m.pt")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "round-000003" in said and "the model is that after round 2" in said


def test_another_activation_is_another_model(tmp_path: Path) -> None:
    """A module made in Python is not in config.yaml, and this one has as many parameters."""

    def experiment(activation: nn.Module) -> Experiment:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), activation, nn.Linear(4, 10))
        return Experiment(FedAvg(), model=model, partition=IidPartitioner(4), rounds=2)

    run(experiment(nn.ReLU()), output=tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="has trained a Sequential with other layers, or other settings of its layers"):
        resume(tmp_path / "run", experiment(nn.Tanh()), rounds=3, progress=False)
    assert resume(tmp_path / "run", experiment(nn.ReLU()), rounds=3, progress=False).config["rounds"] == 3
