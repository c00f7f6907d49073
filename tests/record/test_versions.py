"""Runs and sweeps of another version: they are read, and not continued."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import fedsim
from algorithms import FedAvg, FedSpeed
from fedsim import Evaluation, Execution, Experiment, FixedSize, resume, run
from fedsim.cli import main
from fedsim.errors import RunError
from fedsim.experiment.config import to_config
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner
from fedsim.record.directory import RunDirectory, open_run
from fedsim.report.compare import compare
from fedsim.report.html import write_report

OLD = Path(__file__).parent / "data" / "made-by-0.1.0"
SAME = Experiment(
    FedAvg(lr=0.1),
    partition=IidPartitioner(4),
    model=Logistic(),
    sampling=FixedSize(0.5),
    rounds=4,
    evaluation=Evaluation(every=2, clients_every=None),
    execution=Execution("blocks", block_size=2, checkpoint_every=2, name="short"),
)


@pytest.fixture
def old(tmp_path: Path) -> RunDirectory:
    return open_run(Path(shutil.copytree(OLD, tmp_path / "old")))


def test_a_run_of_0_1_0_is_compared_with_new_ones(old: RunDirectory, tmp_path: Path) -> None:
    assert "backend" in old.config, "execution was not yet apart"
    new = run(SAME, output=tmp_path / "new", progress=False)
    both = compare([old.path, new.path])
    assert [summary.run.label for summary in both.runs] == ["old", "new"] and both.warnings == ()
    assert both.runs[0].final == both.runs[1].final
    faster = run(replace(SAME, algorithm=FedAvg(lr=0.2)), output=tmp_path / "faster", progress=False)
    unlike = replace(SAME, algorithm=FedSpeed()).with_execution(name="", backend="loop")
    other = run(unlike, root=tmp_path, progress=False)
    by_setting = compare([old.path, faster.path])
    assert [summary.run.label for summary in by_setting.runs] == ["FedAvg, lr=0.1", "FedAvg, lr=0.2"]
    by_name = compare([old.path, other.path])
    assert [summary.run.label for summary in by_name.runs] == ["short", "FedSpeed"] and by_name.warnings == ()
    assert "block_size: 2" in write_report([old.path, new.path], tmp_path / "report.html").read_text()


def test_a_run_of_0_1_0_is_not_continued(
    old: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(old.path, progress=False).path == old.path, "nothing is left to do"
    old.mark(0, "interrupted")
    said = rf"old was made by fedsim 0\.1\.0, and this is {fedsim.__version__}, .*; resume it with fedsim 0\.1\.0"
    with pytest.raises(RunError, match=said):
        resume(old.path, progress=False)
    with pytest.raises(RunError, match="resume it with fedsim 0"):
        resume(old.path, SAME, progress=False)
    config = yaml.safe_load((old.path / "config.yaml").read_text())
    listed = {"versions": old.manifest["versions"], "points": [{"name": "old", "config": config}], "failures": {}}
    (tmp_path / "sweep.json").write_text(json.dumps(listed))
    assert main(["resume", str(tmp_path), "--quiet"]) == 1
    assert "was made by fedsim 0.1.0" in capsys.readouterr().err
    old.mark(0, "finished")
    assert main(["resume", str(tmp_path), "--quiet", "--jobs", "1"]) == 0


def test_a_version_with_other_fixes_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run(SAME, output=tmp_path / "run", progress=False)
    directory.mark(0, "interrupted")
    assert directory.manifest["versions"]["fedsim"] == fedsim.__version__ and directory.config == to_config(SAME)
    monkeypatch.setattr("fedsim.record.version.__version__", ".".join([*fedsim.__version__.split(".")[:2], "7"]))
    assert resume(directory.path, progress=False).manifest["status"]["0"]["state"] == "finished"
