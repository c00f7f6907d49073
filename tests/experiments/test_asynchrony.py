"""``experiments/asynchrony.py`` on a few tasks."""

from __future__ import annotations

from pathlib import Path

from experiments.asynchrony import METHODS, SPREADS, main


def test_a_server_that_does_not_wait_is_done_sooner(tmp_path: Path) -> None:
    assert main(["--tasks", "40", "--seeds", "1", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "asynchrony" / "table.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()][2:]
    assert [(row[0], row[1]) for row in rows] == [(f"{spread:g}", method) for spread in SPREADS for method in METHODS]
    seconds = {(row[0], row[1]): float(row[3].replace(",", "")) for row in rows}
    assert seconds["1.5", "FedAvg"] > 2 * seconds["1.5", "FedBuff"] > 0
    assert seconds["1.5", "FedAvg"] > seconds["0", "FedAvg"]
