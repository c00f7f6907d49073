"""A user's own model on actors gives what it gives in one process, also from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from algorithms import FedAvg
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.cli import main
from fedsim.engine.loop import Loop
from tests.backends.ray.shared import measured, workers
from tests.engine.test_batch_norm import federation, trained

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
WORDS = [
    *("run", "--algorithm", "FedAvg", "--partition", "DirichletPartitioner", "--partition.num_partitions", "6"),
    *("--partition.alpha", "0.3", "--partition.min_partition_size", "2", "--rounds", "2", "--evaluation.every", "1"),
    *("--local.batch_size", "16", "--block_size", "3", "--quiet"),
]


def test_a_model_that_mixes_samples_and_holds_its_last_call(tmp_path: Path) -> None:
    words = [*WORDS, "--model", "tests.controller.test_own_model.Centring"]
    on_ray = [*words, "--backend", "ray", "--ray.actors", "2", "--output", str(tmp_path / "ray")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run([sys.executable, "-m", "fedsim", *on_ray], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert main([*words, "--backend", "blocks", "--output", str(tmp_path / "blocks")]) == 0
    assert measured(tmp_path / "ray") == measured(tmp_path / "blocks")


def test_batch_norm_in_training() -> None:
    expected = trained(federation(Loop()), FedAvg(lr=0.2))
    found = trained(federation(RayActors(workers(), 2)), FedAvg(lr=0.2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
