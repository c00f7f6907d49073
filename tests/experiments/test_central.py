"""``experiments/central.py``: that settings are chosen on withheld samples, and all methods are compared; on digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from experiments.central import GRIDS, main
from experiments.tuning import described
from fedsim.experiment.config import from_config
from fedsim.record.directory import open_run
from fedsim.report.compare import compare

METHODS = ("FedAvg", "FedAMD")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    arguments = ["--quick", "--rounds", "3", "--seeds", "1", "--methods", *METHODS, "--root", str(root)]
    assert main(arguments) == 0
    return root / "central"


@pytest.mark.parametrize("method", METHODS)
def test_the_best_on_withheld_samples_is_run(folder: Path, method: str) -> None:
    paths = [folder / "tuning" / f"{method},{described(GRIDS[method], algorithm)}" for algorithm in GRIDS[method]]
    trials = compare(paths, "clients/holdout", "accuracy_weighted_mean").runs
    best = max(trials, key=lambda summary: summary.final.mean)
    final = open_run(folder / "final" / method)
    assert from_config(final.config).algorithm == from_config(best.run.config).algorithm
    assert sorted(best.run.seeds) == [100, 101] and list(final.manifest["status"]) == ["0"]
    assert best.run.config["evaluation"]["holdout"] == 0.2 and final.config["evaluation"]["holdout"] == 0


def test_table_and_curves(folder: Path) -> None:
    rows = [line.strip("| \n").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert rows[0][0] == "run" and rows[0][-1] == "chosen" and [row[0] for row in rows[2:]] == list(METHODS)
    assert all(row[-1].startswith("lr=") for row in rows[2:])
    assert imread(folder / "accuracy.png").std() > 0.05, "not a blank page"


def test_grids_have_no_setting_twice() -> None:
    for grid in GRIDS.values():
        assert len({described(grid, algorithm) for algorithm in grid}) == len(grid)
        assert {type(replace(algorithm)) for algorithm in grid} == {type(grid[0])}
