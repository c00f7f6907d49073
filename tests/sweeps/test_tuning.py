"""Methods at their best: what is chosen, on what, and what is run then."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DFedAvg, FedAvg, FedSpeed
from fedsim import Execution, Experiment, IidPartitioner, LocalWork, run, tune
from fedsim.cli import main
from fedsim.controller.rounds import SeedRun
from fedsim.errors import ConfigError, DivergenceError
from fedsim.models import Logistic
from fedsim.record.directory import open_run
from fedsim.report.compare import compare
from fedsim.sweeps.tuning import APART, WITHHELD
from topologies import Ring, Static

BASE = Experiment(
    FedAvg(),
    partition=IidPartitioner(4),
    model=Logistic(),
    local=LocalWork(steps=2),
    rounds=2,
    execution=Execution("loop", threads=1),
)
STEPS = {"lr=0.001": 0.001, "lr=0.5": 0.5}
AVERAGED = {name: replace(BASE, algorithm=FedAvg(lr)) for name, lr in STEPS.items()}


def test_the_best_on_withheld_samples_is_run_on_other_seeds(tmp_path: Path) -> None:
    methods = {"FedAvg": AVERAGED, "mine": {"as given": replace(BASE, algorithm=FedSpeed(0.3))}}
    tuned = tune(methods, tmp_path, jobs=1, progress=False)
    assert tuned.chosen == {"FedAvg": "lr=0.5", "mine": "as given"} and list(tuned.withheld) == ["FedAvg"]
    assert tuned.paths == [tmp_path / "final" / "FedAvg", tmp_path / "final" / "mine"]
    trial = open_run(tmp_path / "tuning" / "FedAvg,lr=0.5")
    assert list(trial.manifest["status"]) == [str(APART), str(APART + 1)], "two seeds, far from those of the result"
    assert trial.config["evaluation"]["holdout"] == WITHHELD
    measured = compare(trial.path, "clients/holdout", "accuracy_weighted_mean").runs[0].final.mean
    assert tuned.withheld["FedAvg"]["lr=0.5"].mean == measured > tuned.withheld["FedAvg"]["lr=0.001"].mean
    final = open_run(tuned.paths[0])
    assert list(final.manifest["status"]) == ["0"] and final.config["evaluation"]["holdout"] == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert tune(methods, tmp_path, jobs=1, progress=False).chosen == tuned.chosen
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}, "nothing ran again"


def test_an_interruption_says_to_repeat_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``fedsim resume`` of the sweep that was running would leave out what comes after it."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"^repeat what you ran"):
        patch.setattr(SeedRun, "_evaluate", stop)
        tune({"FedAvg": AVERAGED}, tmp_path, seeds=1, jobs=1, progress=False)
    assert tune({"FedAvg": AVERAGED}, tmp_path, seeds=1, jobs=1, progress=False).chosen == {"FedAvg": "lr=0.5"}


def test_methods_and_settings_are_added_in_place(tmp_path: Path) -> None:
    """What was measured stays; a method of which another setting is chosen now runs again."""
    slow = {f"lr={lr}": replace(BASE, algorithm=FedAvg(lr)) for lr in (0.001, 0.01)}
    few = {"FedAvg": slow}
    tune(few, tmp_path, jobs=1, progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("tuning/*/seed-*/metrics.jsonl")}
    more = {"mine": {"as given": replace(BASE, algorithm=FedSpeed(0.3))}, "FedAvg": {**few["FedAvg"], **AVERAGED}}
    tuned = tune(more, tmp_path, jobs=1, progress=False)
    assert tuned.chosen == {"mine": "as given", "FedAvg": "lr=0.5"}
    assert [path.name for path in tuned.paths] == ["mine", "FedAvg"]
    assert open_run(tuned.paths[1]).config["algorithm"]["lr"] == 0.5
    assert len(before) == 4 and before.items() <= {path: path.stat().st_mtime_ns for path in before}.items()
    assert tune({"mine": more["mine"]}, tmp_path, jobs=1, progress=False).paths == [tmp_path / "final" / "mine"]
    with pytest.raises(ConfigError, match=f"^{tmp_path} holds mine with other settings of rounds; repeat the command"):
        tune({"mine": {"as given": replace(more["mine"]["as given"], rounds=3)}}, tmp_path, jobs=1, progress=False)


def test_a_loss_is_best_where_it_is_least_and_nodes_withhold_too(tmp_path: Path) -> None:
    gossip = {name: replace(BASE, algorithm=DFedAvg(lr), topology=Static(Ring())) for name, lr in STEPS.items()}
    tuned = tune({"DFedAvg": gossip}, tmp_path, seeds=1, metric="loss", jobs=1, progress=False)
    values = {name: value.mean for name, value in tuned.withheld["DFedAvg"].items()}
    assert tuned.chosen["DFedAvg"] == min(values, key=values.__getitem__) == "lr=0.5"


def test_settings_that_diverge_are_out(tmp_path: Path) -> None:
    wild = {f"lr={lr:g}": replace(BASE, algorithm=FedAvg(lr, server_lr=1e9)) for lr in (1e38, 1e37)}   # overflow
    tuned = tune({"FedAvg": {**wild, **AVERAGED}}, tmp_path / "some", seeds=1, jobs=1, progress=False)
    assert tuned.chosen["FedAvg"] == "lr=0.5"
    with pytest.raises(DivergenceError, match=r"FedAvg diverges with every setting: lr=1e\+38, lr=1e\+37; give"):
        tune({"FedAvg": wild}, tmp_path / "all", seeds=1, jobs=1, progress=False)


def nowhere(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """A metric that no samples define."""
    return math.nan


@pytest.mark.parametrize("search", ["grid", "halving"])
def test_a_metric_that_is_undefined_is_no_divergence(search: str, tmp_path: Path) -> None:
    measured = {name: replace(made, metrics=(f"{__name__}.nowhere",)) for name, made in AVERAGED.items()}
    with pytest.raises(ConfigError, match=r"nowhere is undefined .* of FedAvg that does not diverge: lr=0.001, lr=0.5"):
        tune({"FedAvg": measured}, tmp_path, seeds=1, metric="nowhere", search=search, jobs=1, progress=False)


def test_wrong_arguments_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a method has no settings"):
        tune({"FedAvg": {}}, tmp_path / "new")
    with pytest.raises(ConfigError, match="metric to choose by is 'acuracy'; did you mean 'accuracy'"):
        tune({"FedAvg": AVERAGED}, tmp_path / "new", metric="acuracy")
    with pytest.raises(ConfigError, match="tuning seeds is 0"):
        tune({"FedAvg": AVERAGED}, tmp_path / "new", seeds=0)
    with pytest.raises(ConfigError, match="expected a plain directory name"):
        tune({"a/b": AVERAGED}, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    made = run(BASE, root=tmp_path, progress=False).path
    with pytest.raises(ConfigError, match="exists and holds something else"):
        tune({"FedAvg": AVERAGED}, made)
    assert not (made / "tuning").exists() and not (made / "final").exists()


FILE = """
partition: {name: IidPartitioner, num_partitions: 4}
model: Logistic
local: {steps: 2}
rounds: 2
backend: loop
methods:
  FedAvg: {algorithm.lr: [0.001, 0.5]}
  mine: {algorithm: FedSpeed, algorithm.lr: 0.3, model: {name: MLP, hidden: [4]}}
"""


def test_the_command_reads_methods_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "methods.yaml").write_text(FILE)
    words = ["tune", str(tmp_path / "methods.yaml"), "--output", str(tmp_path / "out"), "--jobs", "1", "--quiet"]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["chosen"] == {"FedAvg": "lr=0.5", "mine": "as given"}
    assert [run["run"] for run in printed["runs"]] == ["FedAvg", "mine"]
    assert open_run(tmp_path / "out" / "final" / "mine").config["model"] == {"name": "MLP", "hidden": [4]}
    assert main(words) == 0
    assert "lr=0.5" in (shown := capsys.readouterr().out) and "accuracy on withheld samples" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds: 2", "the file has no methods with their settings"),
        ("methods: [FedAvg]", "the file has no methods with their settings"),
        ("methods: {FedAvg: {algorithm.lrr: [1, 2]}}", "methods.FedAvg: unknown setting algorithm.lrr"),
        ("methods: {FedAvg: {algorithm.lr: []}}", "methods.FedAvg.algorithm.lr is an empty list"),
        ("methods: {Mine: {algorithm.lr: [0.1, 0.2]}}", "methods.Mine: "),
    ],
)
def test_files_that_cannot_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "methods.yaml").write_text(text)
    assert main(["tune", str(tmp_path / "methods.yaml"), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
