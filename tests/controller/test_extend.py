"""A run with more rounds added to it equals one that had them from the start."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorithms import CO2, DPSGD, FedAvg, FedBuff, Scaffold
from fedsim import Clock, Cosine, Evaluation, Experiment, FixedSize, TopK, resume, run
from fedsim.cli import main
from fedsim.controller import extend
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.schedule import ExponentialDecay
from fedsim.feedback import EF14Uplink
from fedsim.record.directory import RunDirectory
from fedsim.robust import CoordinateMedian, SignFlip
from tests.controller.test_run import SMALL
from topologies import Ring, Static

BASE = replace(SMALL, rounds=3, evaluation=Evaluation(every=2))
AVG = replace(BASE, algorithm=FedAvg())
GOSSIP = replace(BASE, algorithm=DPSGD(), topology=Static(Ring()), sampling=FixedSize(1.0))
EVERY = Evaluation(every=1)
CASES = {
    "last round not evaluated otherwise": BASE,
    "last round evaluated": replace(AVG, evaluation=EVERY, metrics=("f1_macro", "update_norm", "drift")),
    "clients evaluated": replace(AVG, evaluation=Evaluation(every=2, clients_every=3)),
    "memories, links, decay": replace(
        BASE, algorithm=Scaffold(), uplink=EF14Uplink(TopK(0.1)), schedule=ExponentialDecay(0.9), seeds=2
    ),
    "gossip": replace(GOSSIP, evaluation=EVERY),
    "clock, attack": replace(AVG, clock=Clock(), attack=SignFlip(0.2), aggregate=CoordinateMedian(), evaluation=EVERY),
    "asynchronous": replace(AVG, algorithm=FedBuff(buffer=2), clock=Clock(), concurrency=4),
}


def files(directory: RunDirectory, last: int) -> dict[str, bytes]:
    """All that is reproducible of a run: settings, metrics, devices, edges, and the checkpoint of its last round."""
    found = {"config": (directory.path / "config.yaml").read_bytes()}
    for folder in sorted(directory.path.glob("seed-*")):
        paths = [folder / name for name in ("metrics.jsonl", "devices.npz", "edges.csv")]
        paths += sorted((folder / "checkpoints" / f"round-{last:06d}").iterdir())
        found |= {str(p.relative_to(directory.path)): p.read_bytes() for p in paths if p.exists()}
    return found


@pytest.mark.parametrize("experiment", CASES.values(), ids=CASES)
def test_a_finished_run_goes_on(experiment: Experiment, tmp_path: Path) -> None:
    made = run(experiment, output=tmp_path / "made", progress=False)
    whole = run(replace(experiment, rounds=5), output=tmp_path / "whole", progress=False)
    resume(made.path, rounds=5, progress=False)
    assert files(made, 5) == files(whole, 5)
    assert {status["state"] for status in made.manifest["status"].values()} == {"finished"}
    assert [(entry["from"], entry["to"]) for entry in made.manifest["extended"]] == [(3, 5)]


def test_twice_and_in_the_middle(tmp_path: Path) -> None:
    """Of two seeds, one has finished; the checkpoint of a former last round is as if it had not been."""
    experiment = replace(AVG, seeds=2).with_execution(checkpoint_every=3)
    whole = run(replace(experiment, rounds=5), output=tmp_path / "whole", progress=False)
    made = run(experiment, output=tmp_path / "made", progress=False)
    shutil.rmtree(made.seed_path(1) / "checkpoints")
    made.mark(1, "interrupted")
    resume(made.path, rounds=4, progress=False)
    assert resume(made.path, experiment, rounds=5, progress=False).config["rounds"] == 5
    assert files(made, 5) == files(whole, 5)
    whole = run(replace(experiment, rounds=4), output=tmp_path / "four", progress=False)
    made = resume(run(experiment, output=tmp_path / "three", progress=False).path, rounds=4, progress=False)
    assert files(made, 3) == files(whole, 3)


@pytest.mark.parametrize("moment", ["config", "metrics", "checkpoint"])
def test_killed_while_it_is_extended(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(replace(AVG, rounds=5), output=tmp_path / "whole", progress=False)
    made = run(AVG, output=tmp_path / "made", progress=False)
    place = {
        "config": "fedsim.controller.extend.write_atomic",
        "metrics": "fedsim.record.directory.SeedRecord.shorten",
        "checkpoint": "fedsim.controller.rounds.checkpoint.save",
    }[moment]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, killed)
        resume(made.path, rounds=5, progress=False)
    assert made.config["rounds"] == (3 if moment == "config" else 5)
    assert made.manifest["status"]["0"]["state"] == "interrupted"
    resume(made.path, rounds=5, progress=False)
    assert files(made, 5) == files(whole, 5)


def test_what_is_not_extended_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[Experiment, int, type[Exception], str]] = [
        (AVG, 2, ConfigError, "rounds is 2, and seed 0 of .* has done 3; expected more"),
        (replace(AVG, schedule=Cosine()), 5, ConfigError, "is Cosine over all of its 3 rounds"),
        (replace(AVG, algorithm=CO2(), sampling=FixedSize(1.0)), 5, RunError, "CO2.finish has used what was under way"),
    ]  # fmt: skip
    for number, (experiment, rounds, kind, words) in enumerate(cases):
        made = run(experiment, output=tmp_path / str(number), progress=False)
        before = files(made, 3), made.manifest
        with pytest.raises(kind, match=words):
            resume(made.path, rounds=rounds, progress=False)
        assert (files(made, 3), made.manifest) == before
    made.update_manifest(backend={"0": {"backend": "flower"}})
    with pytest.raises(RunError, match="was deployed"):
        resume(made.path, rounds=5, progress=False)
    assert main(["resume", str(made.path), "--rounds", "0"]) == 2
    assert "rounds" in capsys.readouterr().err


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(AVG, output=tmp_path / "made", progress=False)
    assert main(["resume", str(made.path), "--rounds", "4", "--quiet"]) == 0
    assert made.config["rounds"] == 4
    assert main(["resume", str(made.path), "--rounds", "4"]) == 0
    assert "had finished its 4 rounds; nothing to resume" in capsys.readouterr().err
    assert extend.was_end(made.manifest, 3) and not extend.was_end(made.manifest, 4)
