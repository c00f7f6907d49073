"""TensorBoard's own reader finds what a run has recorded."""

from __future__ import annotations

import errno
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from fedsim.cli import main
from fedsim.record.directory import SeedRecord, create_run, open_run
from fedsim.record.metrics import read_metrics
from fedsim.record.sinks.sink import follow_metrics, write_metrics
from tests.report.test_compare import FAST, make_run

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, "fast", {0: FAST[0], 1: [0.1, float("nan")], 2: []})


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def test_tensorboard_reads_the_metrics(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "new" / "events"
    assert main(["export", str(run), "--to", "tensorboard", str(root)]) == 0
    assert f"{root / 'fast'}: see it with tensorboard --logdir {root}" in capsys.readouterr().out
    assert [path.name for path in root.iterdir()] == ["fast"], "nothing but the run"
    assert sorted(path.name for path in (root / "fast").iterdir()) == ["seed-0", "seed-1"], "seed 2 measured nothing"

    rows = read_metrics(run / "seed-0" / "metrics.jsonl")
    shared = {(scope, name) for scope, name, node in zip(rows.scope, rows.metric, rows.node, strict=True) if node == -1}
    found = events(root / "fast" / "seed-0")
    assert set(found.Tags()["scalars"]) == {"/".join(key) for key in shared}, "none of single clients"
    created = datetime.fromisoformat(open_run(run).manifest["created"]).timestamp()
    for scope, name in shared:
        written = found.Scalars(f"{scope}/{name}")
        assert {e.step: pytest.approx(e.value) for e in written} == rows.series(scope, name)
        assert [e.wall_time for e in written] == [created + 0.5 * e.step for e in written]
    assert main(["export", str(run), "--to", "tensorboard", str(tmp_path / "again")]) == 0
    first, second = (sorted(folder.rglob("*tfevents*")) for folder in (root, tmp_path / "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second] and len(first) == 2
    lost = events(root / "fast" / "seed-1").Scalars("server/test/accuracy")
    assert lost[0].value == pytest.approx(0.1) and lost[1].value != lost[1].value, "NaN is shown, not left out"


def measure(record: SeedRecord, *rounds: int) -> None:
    for round in rounds:
        record.metrics.add(round, "server/test", "loss", 1 / (1 + round))
        record.timing.add(round, "host", "seconds", 0.5 * round)
        record.flush()


def until_steps(folder: Path, expected: list[int]) -> None:
    """Wait until TensorBoard sees these rounds."""
    deadline = time.monotonic() + 30
    while not folder.exists() or [e.step for e in events(folder).Scalars("server/test/loss")] != expected:
        assert time.monotonic() < deadline, folder
        time.sleep(0.02)


def test_follow_a_run_under_way_and_its_resumption(tmp_path: Path) -> None:
    run = create_run(tmp_path, "live", {}, {"seeds": [0, 1]})
    run.mark(0, "running")
    follower = threading.Thread(target=follow_metrics, args=(run, "tensorboard", tmp_path / "events", 0.01))
    follower.start()
    with run.open_seed(0) as record:
        measure(record, 0)
        checkpoint = record.position()["offset"]
        until_steps(tmp_path / "events" / "live" / "seed-0", [0])
        measure(record, 5)
        until_steps(tmp_path / "events" / "live" / "seed-0", [0, 5])
        record.truncate(checkpoint, 0)
        time.sleep(0.05)
        measure(record, 5, 10)
        until_steps(tmp_path / "events" / "live" / "seed-0", [0, 5, 10])
    run.mark(0, "finished")
    time.sleep(0.05)
    assert follower.is_alive(), "seed 1 waits"
    with run.open_seed(1) as record:
        measure(record, 0, 5)
    run.mark(1, "finished")
    follower.join(30)
    assert not follower.is_alive()
    write_metrics(run, "tensorboard", tmp_path / "after")
    live, after = (sorted((tmp_path / name).rglob("*tfevents*")) for name in ("events", "after"))
    assert [path.parent.name for path in live] == ["seed-0", "seed-1"]
    for one, other in zip(live, after, strict=True):
        assert events(one.parent).Scalars("server/test/loss") == events(other.parent).Scalars("server/test/loss")


def test_what_cannot_be_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ["export", str(run)]
    to = ["--to", "tensorboard", str(tmp_path / "events")]
    assert main([*export, *to]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "events").rglob("*") if path.is_file()}
    empty = make_run(tmp_path, "empty", {0: []})
    (tmp_path / "file").touch()
    for argv, code, error in (
        ([*export, *to], 2, "fast exists; choose another folder, or remove it first"),
        ([*export, "--to", "tensorbord", str(tmp_path)], 2, "no tool 'tensorbord'; did you mean 'tensorboard'"),
        ([*export, *to, "--seed", "1"], 2, "--seed and --node are of the model"),
        ([*export, "--output", "model.pt", "--follow"], 2, "--follow is of metrics"),
        ([*export, *to, "--follow"], 2, "fast exists; choose another folder"),
        ([*export, *to, "--output", "model.pt"], 2, "not allowed with argument"),
        (export, 2, "one of the arguments --output --to is required"),
        (["export", str(empty), *to], 1, "measured nothing yet; continue it with fedsim resume"),
        (["export", str(empty), *to, "--follow"], 1, "measured nothing yet; continue it with fedsim resume"),
        ([*export, "--to", "tensorboard", str(tmp_path / "file")], 2, "cannot write"),
    ):
        capsys.readouterr()
        assert main(argv) == code, argv
        assert error in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in (tmp_path / "events").rglob("*") if path.is_file()}
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["fast"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(RecordWriter, "write", full)
        assert main([*export, "--to", "tensorboard", str(tmp_path / "full")]) == 1
    assert "No space left on device" in capsys.readouterr().err and not any((tmp_path / "full").iterdir())

    monkeypatch.delitem(sys.modules, "fedsim.record.sinks.tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert main([*export, "--to", "tensorboard", str(tmp_path / "more")]) == 2
    assert "event files need TensorBoard" in (said := capsys.readouterr().err) and "'.[tensorboard]'" in said
