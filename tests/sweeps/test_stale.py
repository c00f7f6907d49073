"""Finished points run again where their code or data have changed, and only there."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algorithms import FedAvg, FedSpeed
from fedsim import Data, Execution, Experiment, IidPartitioner, LocalWork, sweep
from fedsim.experiment.code import changed, code_of, source_of
from fedsim.models import Logistic
from fedsim.record.directory import open_run
from fedsim.report.series import find_runs
from fedsim.sweeps.grid import Sweep
from fedsim.sweeps.jobs import run_sweep

ALGORITHM = '''
"""A method."""
from dataclasses import dataclass
from mine.steps import SIZE
from algorithms import FedAvg as Base


@dataclass(frozen=True)
class Mine(Base):
    """It."""
    lr: float = SIZE
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "method.py").write_text(ALGORITHM)
    (folder / "steps.py").write_text("SIZE = 0.1\n")
    monkeypatch.syspath_prepend(folder.parent)
    source_of.cache_clear()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    source_of.cache_clear()


def base(tmp_path: Path) -> Experiment:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(60, 4)).astype("f4"), y=rng.integers(0, 2, 60))
    data = Data("npz", options={"path": str(tmp_path / "data.npz")})
    execution = Execution("loop", threads=1)
    return Experiment(
        FedAvg(), data=data, partition=IidPartitioner(4), model=Logistic(), local=LocalWork(steps=1), rounds=1,
        execution=execution,
    )  # fmt: skip


def written(made: Sweep) -> dict[str, int]:
    return {run.path.name: (run.path / "manifest.json").stat().st_mtime_ns for run in find_runs([made.path])}


def test_code_is_that_of_ones_own_parts_and_what_they_import(package: Path, tmp_path: Path) -> None:
    mine = importlib.import_module("mine.method").Mine
    code = code_of(replace(base(tmp_path), algorithm=mine()))
    assert set(code) == {"mine.method", "mine.steps"}
    reworded = ALGORITHM.replace("A method", "Another word").replace("It.", "")
    (package / "method.py").write_text(f"# a comment\n{reworded}")
    assert changed(code) == []
    (package / "steps.py").write_text("SIZE = 0.2\n")
    assert changed(code) == ["mine.steps"]
    (package / "steps.py").write_text("SIZE = \n")
    assert changed(code) == ["mine.steps"]
    (package / "steps.py").unlink()
    source_of.cache_clear()
    assert changed(code) == [], "nobody knows"
    assert {"algorithms.fedspeed"} <= set(code_of(replace(base(tmp_path), algorithm=FedSpeed())))


def test_names_that_a_module_defines_are_no_modules(package: Path, tmp_path: Path) -> None:
    """Not even where a file or a folder of that name lies on the path."""
    (package / "method.py").write_text(f"from mine.steps import other, folder\n{ALGORITHM}")
    (package / "steps.py").write_text("SIZE, other, folder = 0.1, 1, 2\n")
    (package.parent / "other.py").write_text("")
    (package.parent / "folder").mkdir()
    mine = importlib.import_module("mine.method").Mine
    assert set(code_of(replace(base(tmp_path), algorithm=mine()))) == {"mine.method", "mine.steps"}


def test_points_whose_code_has_changed_run_again(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = importlib.import_module("mine.method").Mine
    plain = base(tmp_path)
    points = {"mine": replace(plain, algorithm=mine(0.1)), "plain": plain}
    made = sweep(points, output=tmp_path / "sweep", jobs=1, progress=False)
    before = written(made)
    assert set(open_run(made.path / "mine").manifest["code"]) == {"mine.method", "mine.steps"}
    run_sweep(made, 1)
    assert written(made) == before and "runs again" not in capsys.readouterr().err
    (package / "steps.py").write_text("SIZE = 0.25\n")
    run_sweep(made, 1)
    assert "mine runs again: mine.steps has changed since" in capsys.readouterr().err
    after = written(made)
    assert after["plain"] == before["plain"] and after["mine"] > before["mine"] and list(after) == ["mine", "plain"]
    assert (made.path / ".stale" / "mine" / "manifest.json").stat().st_mtime_ns == before["mine"], "nothing is lost"


def test_points_whose_data_have_changed_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = base(tmp_path)
    made = sweep({"a": plain}, output=tmp_path / "sweep", jobs=1, progress=False)
    (tmp_path / "data.npz").rename(tmp_path / "elsewhere.npz")
    before = written(made)
    run_sweep(made, 1)
    assert written(made) == before, "without data nothing is known"
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(60, 4)).astype("f4"), y=rng.integers(0, 2, 60))
    run_sweep(made, 1)
    assert "a runs again: the data have changed since" in capsys.readouterr().err and written(made) != before
