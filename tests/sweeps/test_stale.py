"""Points run again where their code or data have changed, and only there."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from algorithms import FedAvg, FedSpeed
from fedsim import Data, Execution, Experiment, IidPartitioner, LocalWork, read_metrics, resume, run, sweep
from fedsim.errors import ConfigError
from fedsim.experiment.code import changed, code_of, source_of
from fedsim.models import Logistic
from fedsim.record.directory import open_run
from fedsim.report.series import find_runs
from fedsim.sweeps.grid import Sweep
from fedsim.sweeps.jobs import run_sweep
from tests.sweeps.test_grid import metrics

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

FEDAVG = set(code_of(Experiment(FedAvg())))
USED = {"mine.method", "mine.steps", *FEDAVG}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "method.py").write_text(ALGORITHM)
    (folder / "steps.py").write_text("SIZE = 0.1\n")
    monkeypatch.syspath_prepend(folder.parent)
    source_of.cache_clear()
    monkeypatch.delitem(sys.modules, "mine", raising=False)   # another test's, in this process
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
    assert set(code) == USED, "those of the class from which it inherits, and not all of our algorithms"
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
    assert set(code_of(replace(base(tmp_path), algorithm=mine()))) == USED


LINES = ["from .steps import *", "from . import steps", "import neighbour", "import mine.steps"]


@pytest.mark.parametrize("line", LINES)
def test_code_is_followed_however_it_is_imported(line: str, package: Path, tmp_path: Path) -> None:
    code = ALGORITHM.replace("from mine.steps import SIZE", f"{line}; SIZE = 0.1; import wave, torch")
    (package / "method.py").write_text(code)
    (package.parent / "neighbour.py").write_text("from mine.steps import SIZE\n")
    mine = importlib.import_module("mine.method").Mine
    found = code_of(replace(base(tmp_path), algorithm=mine()))
    assert set(found) - {"mine", "neighbour"} == USED, "of Python and of installed packages the version counts"
    (package / "steps.py").write_text("SIZE = 0.2\n")
    assert changed(found) == ["mine.steps"]


def test_code_is_what_was_imported(package: Path, tmp_path: Path) -> None:
    """A process that runs one point after the other does not see what was edited meanwhile."""
    method = importlib.import_module("mine.method")
    code = code_of(replace(base(tmp_path), algorithm=method.Mine()))
    (package / "steps.py").write_text("SIZE = 0.2\n")
    assert code_of(replace(base(tmp_path), algorithm=method.Mine())) == code
    importlib.reload(sys.modules["mine.steps"])
    assert changed(code_of(replace(base(tmp_path), algorithm=method.Mine()))) == []


def test_points_whose_code_has_changed_run_again(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = importlib.import_module("mine.method").Mine
    plain = base(tmp_path)
    points = {"mine": replace(plain, algorithm=mine(0.1)), "plain": plain}
    made = sweep(points, output=tmp_path / "sweep", jobs=1, progress=False)
    before = written(made)
    assert set(open_run(made.path / "mine").manifest["code"]) == USED
    run_sweep(made, 1)
    assert written(made) == before and "runs again" not in capsys.readouterr().err
    (package / "steps.py").write_text("SIZE = 0.25\n")
    with pytest.raises(ConfigError, match=r"mine.steps: changed since .* imported it.*; start Python anew, or"):
        run_sweep(made, 1)
    assert written(made) == before, "nothing has moved"
    importlib.reload(sys.modules["mine.steps"])
    run_sweep(made, 1)
    assert "mine runs again: mine.steps has changed since" in capsys.readouterr().err
    after = written(made)
    assert after["plain"] == before["plain"] and after["mine"] > before["mine"] and list(after) == ["mine", "plain"]
    assert (made.path / ".stale" / "mine" / "manifest.json").stat().st_mtime_ns == before["mine"], "nothing is lost"


def test_points_are_of_a_reloaded_module(package: Path, tmp_path: Path) -> None:
    """And not of the class as it was when their settings were read."""
    method = importlib.import_module("mine.method")
    sweep({"a": replace(base(tmp_path), algorithm=method.Mine(0.1))}, output=tmp_path / "a", jobs=1, progress=False)
    with (package / "method.py").open("a") as file:
        file.write("    def client(self, local, x):\n        return 0 * x\n")
    importlib.reload(method)
    points = {"a": replace(base(tmp_path), algorithm=method.Mine(0.1))}
    made = sweep(points, output=tmp_path / "b", jobs=1, progress=False)
    loss = read_metrics(made.path / "a" / "seed-0" / "metrics.jsonl").series("server/test", "loss")
    assert loss[0] == loss[1]


def test_unfinished_points_begin_anew(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is half of one code or data and half of others."""
    mine = importlib.import_module("mine.method").Mine
    points = {"a": replace(base(tmp_path), algorithm=mine(0.1)), "b": replace(base(tmp_path), algorithm=mine(0.2))}
    made = sweep(points, output=tmp_path / "sweep", jobs=1, progress=False)
    for name in points:
        open_run(made.path / name).mark(0, "interrupted")
    run_sweep(made, 1)
    assert "runs again" not in capsys.readouterr().err and not (made.path / ".stale").exists(), "as nothing has changed"
    open_run(made.path / "a").mark(0, "interrupted")
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(60, 4)).astype("f4"), y=rng.integers(0, 2, 60))
    run_sweep(made, 1)
    open_run(made.path / "b").mark(0, "interrupted")
    (package / "steps.py").write_text("SIZE = 0.25\n")
    importlib.reload(sys.modules["mine.steps"])
    run_sweep(made, 1)
    assert {path.name for path in (made.path / ".stale").iterdir()} == {"a", "a-2", "b", "b-2"}
    fresh = sweep(points, output=tmp_path / "fresh", jobs=1, progress=False)
    for name in points:
        assert metrics(made.path / name) == metrics(fresh.path / name)


def test_a_run_that_goes_on_with_other_code_says_so(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = importlib.import_module("mine.method").Mine
    made = run(replace(base(tmp_path), algorithm=mine(0.1)), output=tmp_path / "run", progress=False)
    (package / "steps.py").write_text("SIZE = 0.25\n")
    resume(made.path, rounds=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "mine.steps changed since the run began: later rounds are those of the code as it is now" in said


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
