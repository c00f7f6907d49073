"""Features that are not scaled: told before the run, with a loss that grows, and where it diverges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algorithms import FedAvg
from fedsim import Evaluation, Execution, Experiment, IidPartitioner, Logistic, dataset_of, run
from fedsim.cli import main
from fedsim.controller.scaling import growth
from fedsim.errors import ConfigError, DivergenceError
from fedsim.record.directory import RunDirectory

X = np.random.default_rng(0).standard_normal((80, 3)).astype(np.float32) * np.array([1, 100, 5000], np.float32)
Y = (X[:, 0] > 0).astype(int)
BASE = Experiment(
    FedAvg(lr=0.1),
    data=(X, Y),
    model=Logistic(),
    partition=IidPartitioner(4),
    rounds=4,
    evaluation=Evaluation(every=1, clients_every=None),
    execution=Execution("loop"),
)
SCALE = ": dataset_of(..., standardize=True) gives each mean 0 and variance 1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    return tmp_path / "d.npz"


def test_a_loss_that_grows_is_told_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(BASE, output=tmp_path / "large", progress=False)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("fedsim: note: features are not scaled (feature 2 from -") and first.endswith(SCALE)
    assert second.startswith("fedsim: seed 0: the test loss is ") and " after round 1, and " in second
    assert "before training: lower the learning rate; features are not scaled (" in second and second.endswith(SCALE)
    scaled = dataset_of((X, Y), standardize=True)
    run(replace(BASE, data=scaled), output=tmp_path / "scaled", progress=False)
    assert not capsys.readouterr().err
    assert scaled.train.x.mean(0).abs().max() < 1e-5 and (scaled.train.x.std(0, correction=0) - 1).abs().max() < 1e-5
    assert (scaled.test.x.mean(0).abs() > 1e-3).all(), "by the training samples alone"


def test_a_run_that_diverges_names_the_cause(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"features are not scaled \(feature 2 from .*, feature 0 from ") as error:
        run(replace(BASE, algorithm=FedAvg(lr=1e38)), output=tmp_path / "run", progress=False)
    assert RunDirectory(tmp_path / "run").manifest["status"]["0"]["detail"] == f"DivergenceError: {error.value}"


def test_files_are_scaled_by_an_option(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        f"run --algorithm FedAvg --data npz --data.path {file} --model Logistic --partition IidPartitioner"
        " --partition.num_partitions 4 --rounds 2 --quiet --output"
    )
    assert main([*text.split(), str(tmp_path / "a")]) == 0
    assert "): --data.standardize true gives each mean 0 and variance 1\n" in capsys.readouterr().err
    assert main([*text.split(), str(tmp_path / "b"), "--data.standardize", "true"]) == 0
    assert "not scaled" not in capsys.readouterr().err
    assert RunDirectory(tmp_path / "b").config["data"]["standardize"] is True
    with pytest.raises(ConfigError, match=r"standardize is true, and inputs of tuple are int64 of shape \[80, 3\]"):
        dataset_of((X.astype(np.int64), Y), standardize=True)


def test_a_loss_is_compared_with_that_of_the_initial_model() -> None:
    assert growth(0.7, 7.1, 3) == "the test loss is 7.1 after round 3, and 0.7 before training: lower the learning rate"
    assert not growth(0.7, 6.9, 3) and not growth(0.01, 0.9, 3) and not growth(None, 1e9, 3)
