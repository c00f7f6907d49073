"""``experiments/minibatches.py``: equal grids for all methods, and their messages; on digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.minibatches import METHODS, STEPS, main
from fedsim.report.compare import compare

pytestmark = pytest.mark.slow                              # thirty short runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert main(["--quick", "--rounds", "2", "--seeds", "1", "--root", str(root)]) == 0
    return root / "minibatches"


def test_every_method_tries_the_same_step_sizes(folder: Path) -> None:
    for method in METHODS:
        paths = sorted((folder / "tuning").glob(f"{method},*"))
        tried = [s.run.config["algorithm"]["lr"] for s in compare(paths).runs]
        assert sorted(tried) == sorted(STEPS)


def test_a_hundredth_of_the_values_is_sent_up_after_the_first_round(folder: Path) -> None:
    """Dense starts aside, d = 64 x 100 + 100 + 100 x 10 + 10 values of which 76 are sent; 5 clients, 2 rounds."""
    rows = [line.strip("| \n").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert [row[0] for row in rows[2:]] == list(METHODS) and rows[0][-1] == "chosen"
    whole = 4 * 7510 + 7
    for summary in compare([folder / "final" / name for name in METHODS]).runs:
        up = summary.run.seeds[0].cost["megabytes_up"][-1] * 1e6
        dense = 10 * whole if summary.run.label == "SGD" else 5 * whole * (summary.run.label[:2] in ("EF", "EC"))
        dense = 0 if summary.run.label == "EF14" else dense
        assert dense <= up <= dense + 10 * 76 * 8
