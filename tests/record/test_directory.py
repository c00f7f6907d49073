"""Run directories: unique, append-only, safe against kills and full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from algorithms import FedAvg
from fedsim import Execution, Experiment
from fedsim.errors import ConfigError, RunError
from fedsim.record.directory import RunDirectory, create_run, open_run
from fedsim.record.metrics import read_metrics

CONFIG = {"name": "demo", "algorithm": {"class_path": "algorithms.FedAvg", "init_args": {"lr": 1e-5}}, "rounds": 3}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return create_run(tmp_path / "runs", "demo", CONFIG, {"seeds": [0, 1], "device": "cpu", "data_hash": "d"})


def write_rounds(run: RunDirectory, first: int, last: int) -> list[int]:
    """Rows of rounds first..last of seed 0, and the offset after each."""
    offsets = []
    with run.open_seed(0) as record:
        for round in range(first, last + 1):
            record.metrics.add(round, "server/test", "accuracy", round / 7)
            record.metrics.add(round, "clients/holdout", "accuracy", 0.5, node=3)
            record.timing.add(round, "host", "seconds", round * 0.1)
            offsets.append(record.position()["offset"])
    return offsets


def metrics_file(run: RunDirectory) -> Path:
    return run.seed_path(0) / "metrics.jsonl"


def test_create_writes_config_and_manifest(run: RunDirectory) -> None:
    reopened = open_run(run.path)
    assert reopened.config == CONFIG
    assert list(reopened.config) == list(CONFIG), "the order of the settings is kept"
    manifest = reopened.manifest
    assert set(manifest["versions"]) == {"python", "torch", "numpy", "fedsim"}
    assert manifest["device"] == "cpu" and manifest["data_hash"] == "d"
    assert manifest["status"] == {seed: {"state": "waiting", "detail": ""} for seed in ("0", "1")}


def test_git_state_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repo").mkdir()
    monkeypatch.chdir(tmp_path / "repo")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert create_run(tmp_path, "outside", {}, {}).manifest["git"] is None
    Path("file").write_text("1")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    clean = create_run(tmp_path, "clean", {}, {}).manifest["git"]
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    Path("file").write_text("2")
    assert create_run(tmp_path, "dirty", {}, {}).manifest["git"] == {"commit": clean["commit"], "dirty": True}


def test_same_name_never_overwrites(run: RunDirectory) -> None:
    root = run.path.parent
    assert [create_run(root, "demo", {}, {}).path.name for _ in range(2)] == ["demo-2", "demo-3"]
    assert run.config == CONFIG


def test_concurrent_creation_gives_distinct_complete_runs(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda i: create_run(tmp_path, "same", {"i": i}, {"seeds": [i]}), range(24)))
    assert {run.path.name for run in runs} == {"same", *(f"same-{i}" for i in range(2, 25))}
    assert [open_run(run.path).config["i"] for run in runs] == list(range(24))
    assert len(list(tmp_path.iterdir())) == 24, "no temporary directory is left"


def test_explicit_output_that_exists_is_an_error(tmp_path: Path, run: RunDirectory) -> None:
    assert create_run(tmp_path, "demo", {}, {}, output=tmp_path / "new").path == tmp_path / "new"
    with pytest.raises(ConfigError, match="exists; a run never overwrites"):
        create_run(tmp_path, "demo", {}, {}, output=run.path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_name_must_be_a_directory_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="plain directory name"):
        create_run(tmp_path, name, {}, {})
    if name:                                               # else it is made from the algorithm and the data
        with pytest.raises(ConfigError, match="plain directory name"):
            Experiment(FedAvg(), execution=Execution(name=name))


def test_config_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="plain value"):
        create_run(tmp_path, "demo", {"path": np.float64(1.0)}, {})
    assert not list(tmp_path.iterdir())


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file is no folder; choose another --root"):
        create_run(tmp_path / "file", "demo", {}, {})


def test_open_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: config\.yaml is missing"):
        open_run(tmp_path)


def test_rows_read_back(run: RunDirectory) -> None:
    write_rounds(run, 1, 2)
    rows = read_metrics(metrics_file(run))
    assert rows.round.tolist() == [1, 1, 2, 2]
    assert rows.node.tolist() == [-1, 3, -1, 3]
    assert rows.scope.tolist() == ["server/test", "clients/holdout"] * 2
    assert rows.series("server/test", "accuracy") == {1: 1 / 7, 2: 2 / 7}
    first = json.loads(metrics_file(run).read_text().splitlines()[0])
    assert first == {"round": 1, "scope": "server/test", "node": None, "metric": "accuracy", "value": 1 / 7}


def test_values_that_are_not_finite_are_null(run: RunDirectory) -> None:
    with run.open_seed(0) as record:
        for value in (float("nan"), float("inf"), -float("inf"), 1.5):
            record.metrics.add(0, "server/test", "loss", value)
    text = metrics_file(run).read_text()
    assert [json.loads(line, parse_constant=pytest.fail)["value"] for line in text.splitlines()] == [None] * 3 + [1.5]
    np.testing.assert_array_equal(read_metrics(metrics_file(run)).value, [np.nan, np.nan, np.nan, 1.5])


def test_empty_file_has_no_rows(run: RunDirectory) -> None:
    run.open_seed(0).__exit__(None)
    rows = read_metrics(metrics_file(run))
    assert [len(column) for column in rows] == [0] * 5 and rows.series("server/test", "accuracy") == {}


def test_blocks_of_lines_join(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rounds(run, 1, 50)
    whole = read_metrics(metrics_file(run))
    monkeypatch.setattr("fedsim.record.metrics.READ_BYTES", 300)
    for column, part in zip(whole, read_metrics(metrics_file(run)), strict=True):
        np.testing.assert_array_equal(column, part)


def test_torn_last_line_is_ignored_and_removed(run: RunDirectory) -> None:
    (size,) = write_rounds(run, 1, 1)
    with metrics_file(run).open("ab") as file:
        file.write(b'{"round": 2, "scope": "serv')
    assert read_metrics(metrics_file(run)).round.tolist() == [1, 1]
    with run.open_seed(0) as record:
        assert record.position()["offset"] == size
    assert metrics_file(run).stat().st_size == size


def test_corrupt_line_is_named(run: RunDirectory) -> None:
    write_rounds(run, 1, 3)
    lines = metrics_file(run).read_text().splitlines(keepends=True)
    metrics_file(run).write_text("".join([*lines[:3], lines[3][10:], *lines[4:]]))
    with pytest.raises(RunError, match=r"line 4 of .*metrics\.jsonl is not a metric row"):
        read_metrics(metrics_file(run))


def test_missing_metrics_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match=r"is a folder; expected the metrics of a run \(NAME/seed-0/metrics\.jsonl\)"):
        read_metrics(tmp_path)


def test_resume_gives_the_bytes_of_an_uninterrupted_run(run: RunDirectory, tmp_path: Path) -> None:
    whole = create_run(tmp_path, "whole", CONFIG, {})
    write_rounds(whole, 1, 6)
    offset = write_rounds(run, 1, 4)[1]  # a checkpoint after round 2, killed after round 4
    with run.open_seed(0) as record:
        record.truncate(offset, round=2)
    write_rounds(run, 3, 6)
    assert metrics_file(run).read_bytes() == metrics_file(whole).read_bytes()
    timing = read_metrics(run.seed_path(0) / "timing.jsonl")
    assert timing.round.tolist() == [1, 2, 3, 4, 5, 6]


def test_truncate_to_nothing_empties_the_record(run: RunDirectory) -> None:
    write_rounds(run, 0, 2)
    with run.open_seed(0) as record:
        record.metrics.add(3, "server/test", "loss", 1.0)
        record.truncate(0, round=-1)
    assert metrics_file(run).read_bytes() == b"" == (run.seed_path(0) / "timing.jsonl").read_bytes()


@pytest.mark.parametrize("change", [1, -1])
def test_truncate_refuses_a_file_that_was_changed(run: RunDirectory, change: int) -> None:
    offset = write_rounds(run, 1, 3)[-1]
    with run.open_seed(0) as record, pytest.raises(RunError, match="changed after its checkpoint"):
        record.truncate(offset + change, round=3)
    assert metrics_file(run).stat().st_size == offset


def test_second_writer_is_refused(run: RunDirectory) -> None:
    with run.open_seed(0), pytest.raises(RunError, match="being written by another process"):
        run.open_seed(0)
    with run.open_seed(0):  # and the lock is released
        pass


KILLED = """
import sys
from pathlib import Path
from fedsim.record.directory import open_run
with open_run(Path(sys.argv[1])).open_seed(0) as record:
    for round in range(10**9):
        for node in range(2000):
            record.metrics.add(round, "clients/holdout", "accuracy", 0.123456789 * node, node)
        record.flush()
        print(round, flush=True)
"""


@pytest.mark.process
def test_kill_while_writing_loses_no_flushed_round(run: RunDirectory) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        flushed = [int(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        flushed += map(int, process.stdout.read().split())
    rows = read_metrics(metrics_file(run))
    expected = np.repeat(np.arange(flushed[-1] + 1), 2000)
    np.testing.assert_array_equal(rows.round[: len(expected)], expected)
    assert len(rows.round) <= len(expected) + 2000, "at most a part of the round that was being written"
    with run.open_seed(0) as record:
        assert record.position()["offset"] == metrics_file(run).stat().st_size


def test_full_disk_keeps_whole_rounds_and_says_how_to_go_on(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = write_rounds(run, 1, 5)[-1]
    real_write = os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) <= 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data[: len(data) - 20])

    monkeypatch.setattr(os, "write", full)
    record = run.open_seed(0)
    record.metrics.add(6, "server/test", "accuracy", 0.5)
    with pytest.raises(RunError, match=r"No space left on device; all rows up to round 5 are safe.*fedsim resume"):
        record.flush()
    assert metrics_file(run).stat().st_size == size
    monkeypatch.undo()
    record.flush()  # the rows were kept, and a freed disk takes them
    assert read_metrics(metrics_file(run)).round.tolist()[-1] == 6
    record.__exit__(None)


LIMITED = """
import resource, sys
from pathlib import Path
from fedsim.errors import RunError
from fedsim.record.directory import open_run
with open_run(Path(sys.argv[1])).open_seed(0) as record:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    for round in range(1000):
        record.metrics.add(round, "server/test", "accuracy", 0.5)
        record.flush()
"""


@pytest.mark.process
def test_file_size_limit_of_the_system(run: RunDirectory) -> None:
    """The same with a limit that the kernel enforces."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(run.path)], capture_output=True, text=True)
    rounds = read_metrics(metrics_file(run)).round
    assert len(rounds) > 10 and metrics_file(run).read_bytes().endswith(b"\n")
    assert f"all rows up to round {rounds[-1]} are safe" in done.stderr


def test_mark_and_update_survive_concurrency(run: RunDirectory) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: run.mark(seed, "finished"), range(40)))
    run.mark(1, "failed", "client 3 returned NaN")
    run.update_manifest(partition_hash={"0": "p"})
    manifest = run.manifest
    assert len(manifest["status"]) == 40 and manifest["partition_hash"] == {"0": "p"}
    assert manifest["status"]["1"] == {"state": "failed", "detail": "client 3 returned NaN"}
    assert manifest["device"] == "cpu"


def test_manifest_is_unchanged_when_the_disk_is_full(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = run.manifest
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot update .*No space left on device"):
        run.mark(0, "failed")
    assert run.manifest == before


def test_rows_are_on_disk_before_a_checkpoint(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with run.open_seed(0) as record:
        there = len(synced)
        record.metrics.add(1, "server/test", "loss", 0.5)
        record.flush()
        assert len(synced) == there and record.metrics.path.read_bytes().count(b"\n") == 1, "readers see it at once"
        record.sync()
        assert len(synced) == there + 2
    assert len(synced) == there + 4
