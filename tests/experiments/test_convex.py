"""The experiments on problems of theory, a few rounds each: they run, and their tables and figures are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms import DCGD, EF21
from experiments import econtrol, error_feedback, mean_smoothness
from experiments.convex import read, run_all, starting_at
from fedsim.compress import Identity, TopK
from fedsim.problems import least_squares


def test_curves_in_both_conventions(tmp_path: Path) -> None:
    problem = starting_at(least_squares(3, 8), np.ones(8))
    paths = run_all(problem, {"GD": DCGD(0.5, Identity()), "EF21": EF21(0.1, TopK(k=2))}, 12, tmp_path, here=True)
    gd, ef21 = read(paths, 3).values()
    first = float(problem.gradient(torch.ones(8, dtype=torch.float64)).square().sum())
    assert gd.value[0] == pytest.approx(first) and gd.value[-1] < first
    assert gd.paper_bits.tolist() == (32 * 8 * gd.round).tolist()
    assert ef21.paper_bits.tolist() == (32 * 2 * ef21.round).tolist(), "the dense start is not counted"
    assert (gd.wire_bits[1:] > gd.paper_bits[1:]).all() and (ef21.wire_bits[1:] > ef21.paper_bits[1:]).all()
    assert gd.to_reach(gd.value[5]) == gd.round[5] and np.isnan(gd.to_reach(0.0))


def test_error_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_feedback.main(["--quick", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("GD", "EF14 x16", "EF21 x256", "EF21+ x256", "EControl x256"))
    assert (tmp_path / "error-feedback" / "digits.png").stat().st_size > 10_000


def test_mean_smoothness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mean_smoothness.main(["--quick", "--root", str(tmp_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "1, 1, 1, 100" in line)
    assert row.split()[-5:-3] == ["1.942", "1.919"], "the means' ratio, and that of the step sizes"
    assert (tmp_path / "mean-smoothness" / "mean-smoothness.png").stat().st_size > 10_000


def test_econtrol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert econtrol.main(["--quick", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "zeta = 10" in out and "EC-Ideal" in out
