"""Precision as a setting of an experiment: repeated, resumed, recorded, compared, and refused where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim import Execution, Experiment, LocalWork, compare, resume, run
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.short_forms import recorded as in_present_form
from fedsim.models import LeNet5
from fedsim.record.directory import RunDirectory
from tests.test_devices import SMALL, images, recorded, series_of

LOW = replace(SMALL, precision="bf16", rounds=4)


def ran(experiment: Experiment, root: Path, **execution: Any) -> RunDirectory:
    return run(experiment.with_execution(**execution), root=root, progress=False)


@pytest.mark.parametrize("backend", ["loop", "blocks"])
@pytest.mark.parametrize("settings", [{}, {"data": images(), "model": LeNet5()}], ids=["dense", "convolutional"])
def test_runs_in_bfloat16_repeat_to_the_byte_and_are_rounded(
    settings: dict[str, Any], backend: Any, tmp_path: Path
) -> None:
    experiment = replace(LOW, rounds=2, **settings)
    first, second = (ran(experiment, tmp_path, backend=backend) for _ in range(2))
    assert recorded(first) == recorded(second)
    assert first.manifest["precision"] == "bf16"
    exact = ran(replace(experiment, precision="float32"), tmp_path, backend=backend)
    assert recorded(exact) != recorded(first) and exact.manifest["precision"] == "float32"
    assert series_of(first) == pytest.approx(series_of(exact), rel=0.02)


def test_blocks_are_the_loop_within_rounding(tmp_path: Path) -> None:
    loop, blocks = (series_of(ran(LOW, tmp_path, backend=backend)) for backend in ("loop", "blocks"))
    assert blocks == pytest.approx(loop, rel=2**-8)


@pytest.mark.parametrize("backend", ["loop", "blocks"])
def test_clients_on_threads_have_the_bytes_of_one_after_the_other(backend: Any, tmp_path: Path) -> None:
    one, many = (ran(LOW, tmp_path, backend=backend, client_threads=threads) for threads in (0, 2))
    assert recorded(one) == recorded(many)


def test_a_resumed_run_has_the_bytes_of_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, cut = (run(LOW, output=tmp_path / name, progress=False) for name in ("whole", "cut"))
    last = max((cut.seed_path(0) / "checkpoints").iterdir())
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    cut.mark(0, "interrupted")
    resume(cut.path, progress=False)
    assert recorded(cut) == recorded(whole)


def test_another_precision_is_another_experiment(tmp_path: Path) -> None:
    made = run(LOW, output=tmp_path / "low", progress=False)
    with pytest.raises(RunError, match="was run with other settings of precision"):
        resume(made.path, replace(LOW, precision="float32"), progress=False, rounds=6)
    file = made.path / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "precision": "float32"}))
    with pytest.raises(RunError, match="other settings than"):
        resume(made.path, progress=False, rounds=6)


def test_runs_of_before_are_of_float32() -> None:
    config = {key: value for key, value in to_config(SMALL).items() if key != "precision"}
    assert in_present_form(config)["precision"] == "float32" and from_config(config) == SMALL


def test_a_comparison_names_the_precision(tmp_path: Path) -> None:
    runs = [run(replace(LOW, precision=p), output=tmp_path / p, progress=False).path for p in ("float32", "bf16")]
    found = compare(runs)
    assert [summary.run.label for summary in found.runs] == ["Scaffold, precision=float32", "Scaffold, precision=bf16"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16", "dtype": "float64"}, "precision is bf16 and dtype float64; expected dtype float32"),
        ({"precision": "tf32"}, "precision is tf32, which NVIDIA's GPUs compute.*device 'cpu' is a CPU.*or use bf16"),
        ({"precision": "half"}, "precision is 'half'; expected one of float32, tf32, bf16"),
    ],
)
def test_precisions_that_there_are_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, execution=Execution(device="cpu"), **settings)


def test_strict_determinism_says_that_it_is_about_gpus() -> None:
    on_cpu = Execution(device="cpu", deterministic="strict")
    assert on_cpu.remarks == ["deterministic strict is about GPUs: on a CPU, results repeat in any case"]
    with pytest.raises(ConfigError, match="deterministic is 'yes'; expected one of warn, strict"):
        Execution(deterministic="yes")  # type: ignore[arg-type]


def test_settings_of_files() -> None:
    experiment = replace(LOW, local=LocalWork(8)).with_execution(deterministic="strict")
    config = to_config(experiment)
    assert (config["precision"], config["execution"]["deterministic"]) == ("bf16", "strict")
    assert from_config(config) == experiment
    short = {key: value for key, value in config.items() if key != "execution"} | {"deterministic": "strict"}
    assert from_config(short).execution.deterministic == "strict"
