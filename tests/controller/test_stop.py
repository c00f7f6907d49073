"""A run that stops by its criterion equals one of so many rounds."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorithms import CO2, DPSGD, FedAvg
from fedsim import Clock, Evaluation, Experiment, FixedSize, Stop, compare, read_metrics, render, resume, run
from fedsim.cli import main
from fedsim.controller.rounds import SeedRun
from fedsim.errors import ConfigError
from fedsim.record.directory import RunDirectory
from tests.controller.test_extend import files
from tests.controller.test_run import SMALL
from topologies import Ring, Static

BASE = replace(SMALL, algorithm=FedAvg(), rounds=9, evaluation=Evaluation(every=2), stop=Stop("loss", patience=1))
GOSSIP = replace(BASE, algorithm=DPSGD(), topology=Static(Ring()), sampling=FixedSize(1.0))
OFTEN = replace(BASE.evaluation, clients_every=3)
CASES = {
    "target": replace(BASE, stop=Stop("loss", target=100.0)),
    "patience": replace(BASE, algorithm=FedAvg(lr=3.0)),
    "clients": replace(BASE, evaluation=OFTEN, stop=Stop("accuracy_mean", target=0.0, scope="clients/train")),
    "gossip": replace(GOSSIP, stop=Stop("loss", target=100.0)),
    "consensus": replace(GOSSIP, stop=Stop("contraction", target=2.0, scope="nodes")),
    "finish": replace(BASE, algorithm=CO2(lr=0.1), sampling=FixedSize(1.0), stop=Stop("loss", target=100.0)),
    "finish and clock": replace(
        BASE, algorithm=CO2(lr=0.1), sampling=FixedSize(1.0), clock=Clock(), stop=Stop("loss", target=100.0)
    ),
}


def stopped(made: RunDirectory, seed: int = 0) -> int:
    return int(made.manifest["stopped"][str(seed)]["round"])


def apart_from_settings(found: dict[str, bytes]) -> dict[str, Any]:
    """The files without the settings and, in checkpoints, their hash."""
    others: dict[str, Any] = {name: data for name, data in found.items() if name != "config"}
    for name in others:
        if name.endswith("manifest.json"):
            others[name] = json.loads(others[name])["content"]
            del others[name]["meta"]["settings_sha256"]
    return others


@pytest.mark.parametrize("experiment", CASES.values(), ids=CASES)
def test_it_equals_a_run_of_so_many_rounds(experiment: Experiment, tmp_path: Path) -> None:
    made = run(experiment, output=tmp_path / "made", progress=False)
    last = stopped(made)
    assert 0 < last < 9
    whole = run(replace(experiment, rounds=last, stop=None), output=tmp_path / "whole", progress=False)
    ours, theirs = files(made, last), files(whole, last)
    assert apart_from_settings(ours) == apart_from_settings(theirs)
    assert {status["state"] for status in made.manifest["status"].values()} == {"finished"}


@pytest.mark.parametrize("moment", ["before the checkpoint", "after it"])
def test_resumed_where_it_stopped(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = CASES["finish"]
    whole = run(experiment, output=tmp_path / "whole", progress=False)
    made = run(experiment.with_execution(checkpoint_every=1), output=tmp_path / "made", progress=False)
    last = stopped(made)
    if moment == "before the checkpoint":
        shutil.rmtree(made.seed_path(0) / "checkpoints" / f"round-{last:06d}")
    made.mark(0, "running")
    began = []
    monkeypatch.setattr(SeedRun, "_rounds", lambda *a, do=SeedRun._rounds: (began.append(1), do(*a)))
    resume(made.path, progress=False)
    assert len(began) == (moment == "before the checkpoint")
    ours, theirs = files(made, last), files(whole, last)
    del ours["config"], theirs["config"]
    assert ours == theirs


def test_of_two_seeds_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the seed that did not stop has more rounds to run."""
    free = run(replace(BASE, seeds=2, stop=None, rounds=4), output=tmp_path / "free", progress=False)
    first, second = (read_metrics(free.seed_path(i) / "metrics.jsonl").series("server/test", "loss") for i in (0, 1))
    low, high = sorted([min(first[2], first[4]), min(second[2], second[4])])
    experiment = replace(BASE, seeds=2, rounds=4, stop=Stop("loss", target=(low + high) / 2))
    made = run(experiment, output=tmp_path / "made", progress=False)
    (seed,) = made.manifest["stopped"]
    resume(made.path, rounds=5, progress=False)
    whole = run(replace(experiment, rounds=5), output=tmp_path / "whole", progress=False)
    other = 1 - int(seed)
    for number in (0, 1):
        paths = [each.seed_path(number) / "metrics.jsonl" for each in (made, whole)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_metrics(made.seed_path(other) / "metrics.jsonl").round.max() == 5
    text = str(render(compare(made.path)))
    assert f"stopped early: seed {seed} after round {stopped(made, int(seed))}" in " ".join(text.split())


def test_resume_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(CASES["target"], output=tmp_path / "made", progress=False)
    assert "seed 0 stops after round 2 of 9: server/test loss is" in capsys.readouterr().err
    assert main(["resume", str(made.path)]) == 0
    assert "had stopped: seed 0 after round 2, as server/test loss" in capsys.readouterr().err
    assert main(["resume", str(made.path), "--rounds", "20"]) == 2
    assert "would stop there too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "stop", "lower", "ends"),
    [
        ([3.0, 2.0, 1.0], Stop("loss", patience=1), True, None),
        ([1.0, 2.0], Stop("loss", patience=1), True, "not improved in 1 evaluation since round 0, where it was 1"),
        ([0.1, 0.3, 0.3, 0.2], Stop(patience=3), False, None),
        ([0.1, 0.3, 0.3, 0.2, 0.3], Stop(patience=3), False, "in 3 evaluations since round 1, where it was 0.3"),
        ([math.nan, math.nan], Stop(patience=2), False, None),
        ([math.nan, math.nan, math.nan], Stop(patience=2), False, "since round 0, where it was nan"),
        ([0.5, math.nan, 0.6], Stop(patience=2), False, None),
        ([0.1, 0.9], Stop(target=0.9), False, "reached the target 0.9"),
        ([0.1, 0.89], Stop(target=0.9), False, None),
        ([0.1, 0.2], Stop("loss", target=0.1), True, None),
    ],
)
def test_reasons(values: list[float], stop: Stop, lower: bool, ends: str | None) -> None:
    reason = stop.reason(dict(enumerate(values)), lower)
    assert (reason is None) == (ends is None) and (ends or "") in (reason or "")


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (Stop("acuracy", target=1), "do not measure; they measure accuracy, loss"),
        (Stop("accuracy_mean", 1, scope="clients/train"), "set evaluation.clients_every"),
        (Stop("drift", 1, scope="clients"), "do not measure"),
    ],
)
def test_a_metric_that_is_not_measured(stop: Stop, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        run(replace(BASE, stop=stop), output=tmp_path / "made", progress=False)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("given", [{}, {"target": math.inf}, {"patience": 0}, {"target": 1, "scope": 3}])
def test_bad_settings(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="stop"):
        Stop(**given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"stop is .*; expected Stop\(target=0.9\)"):
        replace(BASE, stop=Stop)  # type: ignore[arg-type]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--algorithm FedAvg --rounds 3 --evaluation.every 1 --stop.metric loss --stop.target 100 --json --output"
    assert main(["run", *words.split(), str(tmp_path / "made")]) == 0
    assert json.loads(capsys.readouterr().out)["final"]["server/test"]["loss"]["mean"] < 100
    assert main(["resume", str(tmp_path / "made")]) == 0
    assert main(["run", "--help"]) == 0
    assert "--stop.patience" in capsys.readouterr().out
