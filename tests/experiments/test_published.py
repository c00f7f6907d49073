"""``experiments/published.py``: that cells go on where they stopped, and ours beside the published; on digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.published import PUBLISHED, SETTINGS, SPLITS, agreement, experiment, main
from fedsim import CropAndFlip
from fedsim.record.directory import open_run

METHODS = ("FedAvg", "FedSMOO", "FedGamma")


def call(root: Path, *methods: str, rounds: int = 4) -> int:
    given = ["--scale", "quick", "--setup", "B", "--split", "0.1", "--rounds", str(rounds), "--root", str(root)]
    return main([*given, "--methods", *methods])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert call(root, "FedAvg") == 0
    first = json.loads((root / "published-quick-B-0.1/FedAvg/manifest.json").read_text())
    assert call(root, *METHODS) == 0
    assert open_run(root / "published-quick-B-0.1/FedAvg").manifest == first, "a finished cell is left as it is"
    return root / "published-quick-B-0.1"


def test_ours_beside_the_published_value_with_the_difference_and_the_ranks(folder: Path) -> None:
    header, _, *rows = [line.strip("| \n").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert [row[0] for row in rows] == list(METHODS) and len(header) == 7
    for row in rows:
        ours = float(row[1].split(" ")[0])
        assert float(row[3]) == PUBLISHED[row[0]]["B"][SPLITS.index("0.1")]
        assert float(row[4]) == pytest.approx(ours - float(row[3]), abs=0.011)
        assert int(row[5]) == 1 + sum(float(other[1].split(" ")[0]) > ours for other in rows)
    assert [row[6] for row in rows] == ["3", "1", "2"]


def test_a_cell_is_not_continued_with_other_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder.parent, "FedAvg", rounds=5) == 1
    assert "was run with other settings of rounds" in capsys.readouterr().err


def test_the_order_of_methods_is_compared() -> None:
    names = [["method", *[""] * 4, "rank", "published rank"]]
    same, opposite = ([*names, *([""] * 5 + [str(i), str(j)] for i, j in pairs)] for pairs in
                      (((1, 1), (2, 2), (3, 3)), ((1, 3), (2, 2), (3, 1))))  # fmt: skip
    assert "orders: 1.00" in agreement(same) and "orders: -1.00" in agreement(opposite)


@pytest.mark.parametrize("setup", ["A", "B"])
@pytest.mark.parametrize("method", PUBLISHED)
def test_cells_are_those_of_the_published_code(method: str, setup: str) -> None:
    """What all cells share, and that 500 or 250 samples make 10 steps an epoch."""
    cell = experiment(method, setup, "0.3", "full", None, None)
    assert (cell.local.weight_decay, cell.local.clip_norm, cell.rounds) == (1e-3, 10, 1000)
    assert (cell.local.weight_decay_mode, cell.local.clip_mode, cell.local.epochs) == ("step", "direction", 5)
    assert cell.local.augment == CropAndFlip(padding=4, crop=0.5, flip=0.5)
    n = {"A": 100, "B": 200}[setup]
    assert 50_000 / n / cell.local.batch_size == 10 and cell.sampling.expected(n) == pytest.approx(10, abs=1e-3)
    assert SETTINGS[method][0].lr == 0.1
