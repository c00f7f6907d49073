"""Random search and successive halving: equal budgets, what stays, and that a choice at the end of its grid is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import FedAvg
from fedsim import Cosine, Stop, run, tune
from fedsim.cli import main
from fedsim.errors import ConfigError
from fedsim.record.directory import open_run
from fedsim.record.metrics import read_metrics
from fedsim.sweeps.search import Interval, drawn, ends, halving_trial, kept, rungs, some_of
from fedsim.sweeps.tuning import trial
from tests.sweeps.test_tuning import BASE, FILE

SIZES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.5)
GRID = {f"lr={lr:g}": replace(BASE, algorithm=FedAvg(lr), rounds=9) for lr in SIZES}


def test_rungs_and_what_goes_on() -> None:
    assert rungs(9, 9, 3) == [1, 3, 9] and rungs(30, 9, 3) == [3, 9, 30] and rungs(25, 4, 2) == [6, 12, 25]
    assert rungs(2, 9, 3) == [2] and rungs(9, 2, 3) == [9], "nothing to halve"
    values = {"a": 0.3, "b": math.nan, "c": 0.9, "d": 0.5, "e": 0.1, "f": 0.2}
    assert kept(values, 3, lower=False) == ["c", "d"] and kept(values, 3, lower=True) == ["e", "f"]
    assert kept({"a": math.nan, "b": 1.0}, 2, lower=False) == ["b"]


def test_draws_are_different_and_the_same_again() -> None:
    axes = {"algorithm.lr": Interval(0.01, 1.0), "local.epochs": [1, 2]}
    found = drawn(axes, 8, seed=0)
    assert found == drawn(axes, 8, seed=0) != drawn(axes, 8, seed=1) and len({str(each) for each in found}) == 8
    assert all(0.01 <= each["algorithm.lr"] <= 1 and each["local.epochs"] in (1, 2) for each in found)
    assert len(drawn({"local.epochs": [1, 2]}, 8, seed=0)) == 2, "there are no more"
    assert Interval(2, 4, "linear").draw(0.5) == 3 and Interval(0.01, 1).draw(0.5) == 0.1
    some = some_of(GRID, 4, seed=0)
    assert len(some) == 4 and list(some) == [name for name in GRID if name in some] and some_of(GRID, 99, 0) == GRID
    for low, high, scale in ((0, 1, "log"), (1, 1, "linear"), (0.1, math.inf, "log"), ("a", 1, "linear")):
        with pytest.raises(ConfigError, match="an interval from"):
            Interval(low, high, scale)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="scale is 'lin'"):
        Interval(0, 1, "lin")


def test_halving_gives_all_rounds_to_the_best_alone(tmp_path: Path) -> None:
    """As a grid search does, for a third of the rounds; what goes on equals a run of as many rounds from the start."""
    tuned = tune({"FedAvg": GRID}, tmp_path / "halving", search="halving", seeds=1, jobs=1, progress=False)
    rounds = {name: open_run(tmp_path / "halving/tuning" / f"FedAvg,{name}").config["rounds"] for name in GRID}
    assert sorted(rounds.values()) == [1] * 6 + [3] * 2 + [9] and rounds[tuned.chosen["FedAvg"]] == 9
    assert tuned.rounds == {"FedAvg": 9 + 3 * 2 + 6} and len(tuned.tried["FedAvg"]) == 9
    assert set(tuned.withheld["FedAvg"]) == {tuned.chosen["FedAvg"]}
    whole = trial(GRID[tuned.chosen["FedAvg"]], 1)
    whole = replace(whole, evaluation=replace(whole.evaluation, every=1, clients_every=1))
    alone = run(whole, output=tmp_path / "alone", progress=False)
    path = tmp_path / "halving/tuning" / f"FedAvg,{tuned.chosen['FedAvg']}" / f"seed-{whole.seed}" / "metrics.jsonl"
    expected = read_metrics(alone.seed_path(whole.seed) / "metrics.jsonl").value.tolist()
    assert read_metrics(path).value.tolist() == expected
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    again = tune({"FedAvg": GRID}, tmp_path / "halving", search="halving", seeds=1, jobs=1, progress=False)
    assert again.chosen == tuned.chosen and again.rounds == tuned.rounds
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}, "nothing ran again"


def test_what_halving_cannot_continue_is_refused_before_anything_runs(tmp_path: Path) -> None:
    stopping = {"lr=1": replace(BASE, stop=Stop(target=0.5)), "lr=2": BASE}
    with pytest.raises(ConfigError, match="stop ends those of FedAvg; leave out stop"):
        tune({"FedAvg": stopping}, tmp_path / "new", search="halving")
    for settings, text in (
        ({"search": "bayes"}, "search is 'bayes'; expected one of grid, random, halving"),
        ({"search": "random"}, "a random search needs trials"),
        ({"trials": 3}, "trials is 3, and a grid tries all settings"),
        ({"search": "halving", "eta": 1}, "eta is 1"),
        ({"search": "random", "trials": 0}, "trials is 0"),
    ):
        with pytest.raises(ConfigError, match=text):
            tune({"FedAvg": GRID}, tmp_path / "new", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    made = halving_trial(replace(BASE, schedule=Cosine(), rounds=9), 3)
    assert made.rounds == 3 and made.schedule == replace(Cosine(), rounds=9), "its steps are those of all rounds"


def test_a_choice_at_the_end_of_its_grid_is_told() -> None:
    assert ends(GRID, "lr=0.5") == ["algorithm.lr=0.5 is the largest that was tried"]
    assert ends(GRID, "lr=1e-06") == ["algorithm.lr=1e-06 is the least that was tried"] and ends(GRID, "lr=0.1") == []
    assert ends({"as given": BASE}, "as given") == []


def test_the_command_draws_from_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "methods.yaml").write_text(FILE.replace("[0.001, 0.5]", "{low: 0.001, high: 0.5}"))
    words = ["tune", str(tmp_path / "methods.yaml"), "--output", str(tmp_path / "out"), "--jobs", "1", "--quiet"]
    assert main(words) == 2
    assert "methods.FedAvg.algorithm.lr is an interval, of which no grid has all" in capsys.readouterr().err
    words += ["--search", "random", "--trials", "2", "--tuning_seeds", "1"]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rounds"] == {"FedAvg": 4} and "tried" in printed["ends"]["FedAvg"][0]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "that was tried; the best may lie beyond." in shown and "rounds" in shown
    (tmp_path / "methods.yaml").write_text(FILE.replace("[0.001, 0.5]", "{low: 0.5, high: 0.001}"))
    assert main(words) == 2 and "methods.FedAvg.algorithm.lr: an interval from 0.5" in capsys.readouterr().err
