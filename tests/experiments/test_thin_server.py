"""``experiments/thin_server.py`` on a few rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.thin_server import METHODS, main


@pytest.mark.slow
def test_a_thin_server_takes_longer(tmp_path: Path) -> None:
    assert main(["--rounds", "2", "--seeds", "1", "--target", "0.05", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "thin-server" / "table.md").read_text()
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in text.splitlines()[2:])}
    assert list(rows) == list(METHODS)
    each = {method: float(row[-1]) for method, row in rows.items()}
    assert each["FedAvg, all"] > 1.5 * each["DFedAvg, torus"] > 0
    assert each["FedAvg, all"] > 2 * each["FedAvg, 8 a round"]
