"""Relative paths are resolved once: from the folder of the file that has them, or where the command was typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedsim.cli import main
from fedsim.experiment.config import from_config, load_config, to_config
from fedsim.experiment.config.paths import absolute, paths
from fedsim.record.directory import open_run

FILE = """
algorithm: DFedAvg
data: {name: csv, path: table.csv, data_dir: sets}
topology: {name: Static, graph: {name: FromFile, path: graph.txt}}
"""


def test_paths_of_a_file_are_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/my.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("project/my.yaml"))
    expected = [str(tmp_path / "project" / name) for name in ("table.csv", "sets", "graph.txt")]
    assert list(paths(config)) == expected
    assert list(paths(to_config(from_config(config)))) == [expected[1], expected[0], expected[2]]


def test_what_is_no_relative_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {"a": {"path": "/x/y", "weights_path": "s3://bucket/key", "data_dir": None}, "rounds": 3, "name": "path"}
    assert absolute(config) == config
    assert absolute({"path": "~/data"}) == {"path": str(tmp_path / "data")}


def test_a_run_is_resumed_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a flag, relative to where the command is typed; its record holds the whole path."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/table.csv").write_text("a,b,ill\n" + "".join(f"{i},{i % 3},{i % 2}\n" for i in range(40)))
    monkeypatch.chdir(tmp_path / "here")
    words = ["--algorithm", "FedAvg", "--data", "csv", "--data.path", "table.csv", "--partition", "IidPartitioner"]
    words += ["--partition.num_partitions", "2", "--model", "Logistic", "--backend", "loop", "--quiet"]
    assert main(["run", *words, "--rounds", "2", "--output", "../run"]) == 0
    monkeypatch.chdir(tmp_path)
    run = open_run(tmp_path / "run")
    assert run.config["data"]["path"] == str(tmp_path / "here/table.csv")
    (whole,) = run.path.glob("seed-0/metrics.jsonl")
    before = whole.read_bytes()
    run.mark(0, "interrupted")
    assert main(["resume", "run", "--quiet"]) == 0 and whole.read_bytes() == before
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({**run.config, "data": {"name": "csv", "path": "here/table.csv"}}))
    monkeypatch.chdir("/")
    assert main(["run", str(settings), "--quiet", "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/seed-0/metrics.jsonl").read_bytes() == before
