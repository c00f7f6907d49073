"""``experiments/compressed.py``, as far as its numbers are known beforehand: a short run on digits."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from experiments.compressed import main

Row = list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["--quick", "--rounds", "3", "--seeds", "1", "--root", str(root)]) == 0
    return root / "compressed"


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Row]:
    lines = [line.strip("| ").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert lines[0][:5] == ["run", "accuracy", "− FedAvg", "MB up", "MB down"] and set(lines[1]) == {"---"}
    return {line[0]: line for line in lines[2:]}


def test_both_algorithms_with_every_mechanism(rows: dict[str, Row]) -> None:
    mechanisms = ("", " Top-1 %", " EF14", " EF21", " EControl")
    expected = {f"{name}{mechanism}" for name in ("FedAvg", "FedSpeed") for mechanism in mechanisms}
    assert set(rows) == expected | {"FedAvg EF14, down EF21-P"} and rows["FedAvg"][2] == "baseline"


def test_the_bytes_of_every_run(rows: dict[str, Row]) -> None:
    """Five clients, three rounds, d = 64 x 100 + 100 + 100 x 10 + 10; a hundredth is 76 values of four bytes, and their
    indices; down, the whole model once, and then such messages.
    """
    d = 7510
    whole = 15 * (4 * d + 7) / 1e6
    for name, row in rows.items():
        up, down = float(row[3]), float(row[4])
        short = 15 * 76 * 4 / 1e6
        if name in ("FedAvg", "FedSpeed"):
            assert up == pytest.approx(whole, rel=1e-3)
        else:
            assert short < up < 1.6 * short
        if "down" in name:
            assert whole / 3 + 2 / 3 * short < down < whole / 3 + 2 / 3 * 1.6 * short
        else:
            assert down == pytest.approx(whole, rel=1e-3)


def test_the_curves(folder: Path) -> None:
    assert imread(folder / "compressed.png").std() > 0.05, "not a blank page"
