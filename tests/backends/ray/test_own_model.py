"""A user's own model on actors, from the command line: the measurements are those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.cli import main
from tests.backends.ray.shared import measured

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
