"""The experiment of `make demo`, in fewer rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.demo import ALGORITHMS, main


def test_demo_leaves_table_curves_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "3", "--seeds", "2", "--root", str(tmp_path)]) == 0
    names = [type(algorithm).__name__ for algorithm in ALGORITHMS]
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert made == {*names, "accuracy.png", "accuracy-per-megabyte.png", "report.html"}


def test_demo_refuses_no_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "0", "--root", str(tmp_path)]) == 1
    assert "rounds is 0; expected a whole number" in capsys.readouterr().err
