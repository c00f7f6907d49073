"""``local.augment`` in an experiment: by name in files and on the command line, tried at set-up, off in evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from algorithms import FedAvg
from fedsim import (
    Chain,
    CropAndFlip,
    Dataset,
    Evaluation,
    Experiment,
    IidPartitioner,
    Jitter,
    LocalWork,
    Logistic,
    Split,
    run,
)
from fedsim.cli import main
from fedsim.controller.prepare import prepare
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, load_config, to_config
from fedsim.types import Augmentation


def halved(x: Tensor, key: Tensor) -> Tensor:
    """A user's function."""
    return 0.5 * x


def of(by: Augmentation | None, lr: float = 0.1) -> Experiment:
    return Experiment(FedAvg(lr), model=Logistic(), rounds=2, local=LocalWork(augment=by), evaluation=Evaluation(1, 1))


@pytest.mark.parametrize("by", [None, CropAndFlip(2, flip=0.1), Chain(halved, Chain(Jitter(), CropAndFlip())), halved])
def test_a_file_says_it(by: Augmentation | None) -> None:
    assert from_config(to_config(of(by))) == of(by)


def test_a_function_of_ones_own_on_the_command_line(tmp_path: Path) -> None:
    name = f"{__name__}.halved"
    flags = ["--algorithm", "FedAvg", "--model", "Logistic", "--rounds", "2", "--output", str(tmp_path / "a")]
    assert main(["run", *flags, "--local.augment", name]) == 0
    assert load_config(tmp_path / "a/config.yaml")["local"]["augment"] == name
    assert main(["resume", str(tmp_path / "a")]) == 0


def measured(by: Augmentation | None, lr: float, root: Path) -> list[tuple[str, float]]:
    made = run(of(by, lr), root=root, progress=False).seed_path(0) / "metrics.jsonl"
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    return [(row["scope"], row["value"]) for row in rows if row["metric"] in ("loss", "loss_mean")]


def test_evaluation_sees_the_samples_as_they_are(tmp_path: Path) -> None:
    """With steps of almost nothing every model is the initial one; with others, models differ."""
    still = measured(CropAndFlip(2), 1e-30, tmp_path)
    assert {scope for scope, _ in still} == {"server/test", "clients/train"}
    assert still == measured(None, 1e-30, tmp_path)
    assert measured(CropAndFlip(2), 0.1, tmp_path) != measured(None, 0.1, tmp_path)


def test_it_is_tried_on_the_samples_at_set_up() -> None:
    with pytest.raises(ConfigError, match=r"CropAndFlip.padding is 8, and images are 8 x 8; expected less"):
        prepare(of(CropAndFlip(8)), 0)
    rows = Split(torch.randn(60, 12), torch.arange(60) % 2)
    table = replace(of(CropAndFlip()), data=Dataset("table", rows, rows, classes=2), partition=IidPartitioner(5))
    with pytest.raises(ConfigError, match=r"local.augment CropAndFlip takes images .*, and a sample is \[12\] float32"):
        prepare(table, 0)
