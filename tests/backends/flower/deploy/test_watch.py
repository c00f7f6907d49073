"""Output of ``fedsim deploy`` during a run, without Flower's processes: files that grow as a run's do."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import yaml

from fedsim.backends.flower.deploy import local_deployment, watch
from fedsim.backends.flower.deploy.watch import Tail
from fedsim.controller import progress
from fedsim.errors import DeployError
from fedsim.experiment.config import from_config
from fedsim.record.directory import create_run
from fedsim.record.metrics import RowWriter
from tests.backends.flower.deploy.test_command import EXPERIMENT

CONFIG = yaml.safe_load(EXPERIMENT.read_text())
ROUNDS = CONFIG["rounds"]


def exchanged(folder: Path, round: int) -> None:
    rows = RowWriter(folder / "exchanges.jsonl")
    rows.add(round, "exchange/each", "wall", 6.0)
    rows.flush()
    rows.close()


def test_the_last_line_has_the_last_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exchange of the last round is noted before the model is measured."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", math.inf)   # no line because the machine was slow
    run = create_run(tmp_path, "x", CONFIG, {"seeds": [0]}, tmp_path / "run")
    experiment, shown = from_config(CONFIG), dict[int, tuple[int, int]]()
    with progress.RunProgress("run", ROUNDS) as bar, run.open_seed(0) as record:
        for round in (0, ROUNDS):
            exchanged(record.directory, round)
            watch._show(bar, experiment, run.path, shown)
            record.metrics.add(round, "server/test", "loss", 2.0)
            record.metrics.add(round, "server/test", "accuracy", (1 + round) / (1 + ROUNDS) - 0.195)
            record.flush()
            watch._show(bar, experiment, run.path, shown)
            watch._show(bar, experiment, run.path, shown)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("run seed 0"))
    assert f"round {ROUNDS}/{ROUNDS}" in line and "accuracy 0.805" in line


def test_a_tail_has_whole_lines_that_are_new(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntw")
    assert tail.lines() == ["one"] and tail.lines() == []
    path.write_text("one\ntwo\n")
    assert tail.lines() == ["two"] and Tail(path).lines() == []


class Fake:
    """A federation in which a run ends at once, after the server told something."""

    def __init__(self, folder: Path, *_: Any) -> None:
        self.folder = folder
        self.superlink = SimpleNamespace(check=lambda: None, log=folder / "superlink.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def flwr(self, command: str, *words: str) -> Any:
        if command == "run":
            app = tomllib.loads((Path(words[0]) / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
            Path(app["log"]).write_text("round 1: 1 client missing: 1\n")
            create_run(self.folder, "x", CONFIG, {"seeds": [0]}, Path(app["output"]))
            return {"run-id": 1}
        return {"runs": [{"status": "finished:completed"}]}


def test_what_the_server_tells_is_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_deployment, "LocalFederation", Fake)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "ASK_SECONDS", 0.0)
    local_deployment.deploy(from_config(CONFIG), tmp_path / "run", local_deployment.LocalDeployment(3), progress=False)
    assert capsys.readouterr().err.splitlines().count("fedsim: round 1: 1 client missing: 1") == 1


class Busy(Fake):
    """A federation on a busy machine, where Flower does not tell how the run is for some time."""

    failures = watch.TRIES - 1

    def flwr(self, command: str, *words: str) -> Any:
        if command == "list" and self.failures:
            self.failures -= 1
            raise DeployError("`flwr list` did not end within 600 s")
        return super().flwr(command, *words)


class Ended(Busy):
    """A federation whose SuperLink has ended."""

    def __init__(self, folder: Path, *_: Any) -> None:
        super().__init__(folder)
        self.superlink.check = self.check

    def check(self) -> None:
        if self.failures < Busy.failures:
            raise DeployError("the SuperLink ended with exit code -9")


def test_a_busy_machine_does_not_end_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on while Flower fails to tell how it is, up to a limit; an end of the SuperLink is the reason."""
    experiment, three = from_config(CONFIG), local_deployment.LocalDeployment(3)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(local_deployment, "LocalFederation", Busy)
    local_deployment.deploy(experiment, tmp_path / "run", three, progress=False)
    assert capsys.readouterr().err.count("`flwr list` did not end within 600 s; asking again") == Busy.failures
    monkeypatch.setattr(local_deployment, "LocalFederation", Ended)
    with pytest.raises(DeployError, match=r"^the SuperLink ended with exit code -9\n.*--resume"):
        local_deployment.deploy(experiment, tmp_path / "ended", three, progress=False)
    monkeypatch.setattr(Busy, "failures", watch.TRIES)
    monkeypatch.setattr(local_deployment, "LocalFederation", Busy)
    with pytest.raises(DeployError, match=r"^`flwr list` did not end within 600 s\n.*--resume"):
        local_deployment.deploy(experiment, tmp_path / "busy", three, progress=False)
