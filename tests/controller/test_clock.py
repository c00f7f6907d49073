"""Runs with a clock: the same models, simulated seconds among the metrics, and resume."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms import CO2, DFedAvg, FedAvg, Scaffold, StreamingDiLoCo
from fedsim import (
    AdamW,
    Clock,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    LogNormal,
    OnOff,
    compare,
    curves,
    records,
    render,
    resume,
    run,
)
from fedsim.cli import main
from fedsim.controller.prepare import prepare
from fedsim.controller.rounds import SeedRun
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config
from fedsim.problems import zeta_least_squares
from fedsim.record import checkpoint
from fedsim.record.directory import RunDirectory
from fedsim.record.metrics import read_metrics
from topologies import Ring, Static

CLOCK = Clock(availability=OnOff(100, 50))
SMALL = Experiment(
    FedAvg(lr=0.02),
    data=zeta_least_squares(n=5, d=6, seed=0),
    local=LocalWork(batch_size=0, steps=2),
    rounds=6,
    evaluation=Evaluation(every=1),
    dtype="float64",
    execution=Execution("loop", checkpoint_every=2),
)
ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": FedAvg(lr=0.02)},
    {"algorithm": Scaffold(lr=0.02)},
    {"algorithm": CO2(lr=0.02)},
    {"algorithm": DFedAvg(lr=0.02), "topology": Static(Ring())},
    {
        "algorithm": StreamingDiLoCo(lr=0.02, fragments=1, overlap=0.3),
        "local": LocalWork(batch_size=0, steps=4, optimizer=AdamW(state="keep")),
    },
]
every_kind = pytest.mark.parametrize("settings", ALGORITHMS, ids=lambda s: type(s["algorithm"]).__name__)


def lines(directory: RunDirectory) -> list[str]:
    return (directory.path / "seed-0" / "metrics.jsonl").read_text().splitlines()


def seconds(directory: RunDirectory) -> dict[int, float]:
    return read_metrics(directory.path / "seed-0" / "metrics.jsonl").series("simulated", "seconds")


def saved(directory: RunDirectory) -> dict[str, Any]:
    loaded = checkpoint.load_latest(directory.path / "seed-0" / "checkpoints")
    assert loaded is not None
    return {name: tensor for name, tensor in loaded.tensors.items() if not name.startswith("clock.")}


@every_kind
def test_a_clock_changes_no_model(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = run(replace(SMALL, **settings), root=tmp_path, progress=False)
    timed = run(replace(SMALL, **settings, clock=CLOCK), root=tmp_path, progress=False)
    assert lines(plain) == [line for line in lines(timed) if '"simulated"' not in line]
    a, b = saved(plain), saved(timed)
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
    times = list(seconds(timed).values())
    assert times == sorted(times) and times[0] == 0 and len({*times}) == 7


@every_kind
def test_a_resumed_run_has_the_same_seconds(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = replace(SMALL, **settings, clock=CLOCK)
    whole = run(timed, output=tmp_path / "whole", progress=False)
    measure = SeedRun._measure

    def stopped(self: SeedRun, round: int, *rest: Any) -> Any:
        if round == 4:
            raise KeyboardInterrupt
        return measure(self, round, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "_measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(timed, output=tmp_path / "stopped", progress=False)
    assert max(seconds(RunDirectory(tmp_path / "stopped"))) == 3
    rest = resume(tmp_path / "stopped", timed, progress=False)
    assert lines(rest) == lines(whole)


def test_devices_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run keeps those in its folder, whatever the distributions have become."""
    timed = replace(SMALL, clock=CLOCK, seeds=2)
    directory = run(timed, output=tmp_path / "run", progress=False)
    first, second = (np.load(directory.path / f"seed-{k}" / "devices.npz")["seconds"] for k in (0, 1))
    assert (first != second).all() and len(first) == 5
    np.testing.assert_array_equal(first, CLOCK.devices(5, 0).seconds)


def test_seconds_are_an_axis_a_cost_and_a_column(tmp_path: Path) -> None:
    slow = replace(SMALL, clock=replace(CLOCK, seconds=LogNormal(10, 0.1)))
    runs = [run(e, root=tmp_path / "runs", progress=False).path for e in (replace(SMALL, clock=CLOCK), slow)]
    compared = compare(runs, metric="loss")
    text = str(render(compared))
    assert "sim. seconds" in text and "by the clock of the experiment" in " ".join(text.split())
    fast, late = (row["simulated_seconds_to_target_mean"] for row in records(compared))
    assert 0 < fast < late
    curves(compared, tmp_path / "a.png", x="simulated_seconds")
    plain = run(SMALL, root=tmp_path / "runs", progress=False).path
    alone = compare([plain], metric="loss")
    assert "sim. seconds" not in str(render(alone)) and "simulated_seconds_to_target_mean" not in records(alone)[0]
    mixed = compare([plain, *runs], metric="loss")
    assert "not recorded" in str(render(mixed)) or mixed.runs[0].cost["simulated_seconds"] is None


def test_a_cost_has_no_best_round_and_no_target(tmp_path: Path) -> None:
    slow = replace(SMALL, clock=replace(CLOCK, seconds=LogNormal(10, 0.1)))
    runs = [run(e, root=tmp_path / "runs", progress=False) for e in (replace(SMALL, clock=CLOCK), slow)]
    compared = compare(runs, scope="simulated", metric="seconds")
    text = str(render(compared))
    assert compared.target is None and "seconds: a cost, of the whole run" in " ".join(text.split())
    assert "best" not in text and "missed" not in text and "to reach" not in text
    first, second = records(compared)
    assert first["final_mean"] == seconds(runs[0])[6] < second["final_mean"] and "best_mean" not in first
    assert second["difference_mean"] == second["final_mean"] - first["final_mean"]
    with pytest.raises(ConfigError, match="simulated seconds is a cost, which has no target"):
        compare(runs, scope="simulated", metric="seconds", target=3.0)


def test_settings_of_a_clock_survive_a_file_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for clock in (CLOCK, Clock(seconds=(1.0, 2.5), bandwidth_up=math.inf, latency=0.25)):
        config = {"algorithm": "FedAvg", "clock": yaml.safe_load(yaml.safe_dump(written(clock)))}
        assert from_config(config).clock == clock
    flags = "--clock Clock --clock.seconds 0.5 --clock.bandwidth_down HalfNormal --clock.bandwidth_down.least 6e6"
    flags += " --clock.bandwidth_down.spread 1e6"
    words = f"run --algorithm FedAvg --rounds 1 --partition.num_partitions 5 {flags} --output {tmp_path / 'run'}"
    assert main(words.split()) == 0
    assert re.search(r"simulated seconds +\d", capsys.readouterr().out)
    config = RunDirectory(tmp_path / "run").config["clock"]
    assert config["seconds"] == 0.5 and config["bandwidth_down"]["least"] == 6e6
    assert main(["run", "--algorithm", "FedAvg", "--clock", "Clock", "--clock.seconds", "-1"]) == 2
    assert main(["list", "clocks"]) == 0
    assert "TracedClock" in capsys.readouterr().out


@pytest.mark.parametrize("flags", ["--algorithm FedAvg", "--algorithm FedBuff --algorithm.buffer 5 --concurrency 5"])
def test_a_time_that_cannot_be_counted_ends_the_run(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    words = f"run --rounds 1 --partition.num_partitions 5 {flags} --output {tmp_path / 'run'}"
    assert main([*words.split(), "--clock", "Clock", "--clock.seconds", "8e9"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"round 1 ends after \S+ simulated seconds; expected at most 9e\+09", error) and not recwarn.list
    assert "clock.seconds" in error and "Traceback" not in error


def test_a_distribution_has_no_default_with_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    for name, lacking in {"Uniform": "low", "HalfNormal": "least", "LogNormal": "median"}.items():
        words = f"run --algorithm FedAvg --clock Clock --clock.latency {name}"
        assert main(words.split()) == 2
        assert f"clock.latency.{lacking} is missing" in capsys.readouterr().err


def written(clock: Clock) -> Any:
    from fedsim.experiment.config import to_config

    return to_config(replace(SMALL, clock=clock))["clock"]


def test_a_clock_is_an_object() -> None:
    with pytest.raises(ConfigError, match=r"clock is 3; expected e.g. Clock"):
        replace(SMALL, clock=3)  # type: ignore[arg-type]


def test_methods_of_fixed_workers_remark_on_partial_cohorts() -> None:
    few = replace(SMALL, algorithm=CO2(lr=0.02), sampling=FixedSize(size=2))
    (remark,) = prepare(few, 0).remarks
    assert remark.startswith("CO2 is a method of fixed workers, and 2 of 5 take part")
    assert not prepare(replace(few, sampling=FixedSize(1.0)), 0).remarks
    assert not prepare(replace(few, algorithm=FedAvg()), 0).remarks
