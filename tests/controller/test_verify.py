"""A run directory that was edited or damaged is found to be, and nothing that reads it ends in a traceback."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from algorithms import DPSGD, Scaffold
from fedsim import Evaluation, FixedSize, compare, resume, run
from fedsim.cli import main
from fedsim.clock import Clock
from fedsim.controller import evaluate
from fedsim.controller.verify import verify
from fedsim.errors import CheckpointError, FedsimError, RunError
from fedsim.experiment.identity import settings_hash
from fedsim.record.checkpoint import CheckpointWarning
from fedsim.record.directory import RunDirectory
from tests.controller.test_run import SMALL, metrics_bytes
from tests.record.damage import damage
from topologies import Ring, Static

BASE = replace(SMALL, algorithm=Scaffold(), rounds=4, evaluation=Evaluation(every=1)).with_execution(checkpoint_every=2)
DIRECTORIES = 5000 if os.environ.get("FEDSIM_LONG") else 100
EXACT = ("edges.csv", "devices.npz", "metrics.jsonl")
"""Files of a seed of which every byte is covered."""
RESUMED = 12
"""One in so many damaged runs is resumed too."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(BASE, output=tmp_path_factory.mktemp("runs") / "run", progress=False)


@pytest.fixture
def made(whole: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of a run; its files are its own."""
    return RunDirectory(shutil.copytree(whole.path, tmp_path / "made"))


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_a_run_is_whole(whole: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(whole.path) == [] and main(["verify", str(whole.path)]) == 0
    assert capsys.readouterr().out == "1 run is whole\n"


def test_an_interrupted_and_an_extended_run_are_whole(made: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made.seed_path(0) / "checkpoints/round-000004")
    made.mark(0, "interrupted")
    assert verify(made.path) == [] and main(["verify", str(made.path)]) == 1
    said = "is unfinished: seed 0 is interrupted, after round 4 of 4; what is there is unchanged\n"
    assert capsys.readouterr().out == f"{made.path} {said}"
    resume(made.path, progress=False)
    assert verify(made.path) == []
    resume(made.path, rounds=6, progress=False)
    assert verify(made.path) == []


def test_every_kind_of_edit_is_named(made: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, seed = made.seed_path(0) / "metrics.jsonl", made.seed_path(0)
    lines = metrics.read_text().splitlines(keepends=True)

    def said(change: object) -> str:
        assert main(["verify", str(made.path)]) == 1
        return capsys.readouterr().out

    last = lines[-1].replace('"value": ', '"value": 1')
    assert "was changed after the checkpoint of round 4" in said(metrics.write_text("".join([*lines[:-1], last])))
    assert "1 row repeated" in said(metrics.write_text("".join([*lines, lines[-1]])))
    assert "no row of round 3, which was due" in said(
        metrics.write_text("".join(line for line in lines if '"round": 3,' not in line))
    )
    assert "out of order" in said(metrics.write_text("".join([*lines[1:], lines[0]])))
    assert "bytes, and had" in said(metrics.write_text("".join(lines[:-1])))
    metrics.write_text("".join(lines))
    (seed / "timing.jsonl").unlink()
    assert "timing.jsonl does not exist" in said(None)
    with pytest.raises(RunError, match=r"timing\.jsonl does not exist"):
        compare(made)
    (seed / "timing.jsonl").write_bytes(b"")
    config = made.config
    (made.path / "config.yaml").write_text(yaml.safe_dump({**config, "rounds": 3}))
    assert "config.yaml has other settings than the run began with" in said(None)
    (made.path / "config.yaml").write_text(yaml.safe_dump(config))
    (made.path / "seed-7").mkdir()
    assert "seed-7 is of no seed in manifest.json" in said(None)
    (made.path / "seed-7").rmdir()
    assert verify(made.path) == []


def test_a_finished_run_that_was_edited_is_not_resumed(made: RunDirectory) -> None:
    """Unless the edit is accepted, which `verify` then knows; nothing is known of a run without its checkpoints."""
    metrics = made.seed_path(0) / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace('"value": 0', '"value": 1', 1))
    with pytest.raises(RunError, match=r"metrics\.jsonl was changed after .* restore the file, .* --accept-changes"):
        resume(made.path, progress=False)
    assert main(["resume", str(made.path), "--accept-changes", "--quiet"]) == 0
    assert verify(made.path) == [] and made.manifest["accepted"][0]["metrics"]["0"]
    resume(made.path, progress=False)
    metrics.write_text(text + text.splitlines(keepends=True)[-1])
    with pytest.raises(RunError, match=r"1 row repeated; the seed has finished: restore the file$"):
        resume(made.path, progress=False, accept_changes=True)
    shutil.rmtree(made.seed_path(0) / "checkpoints")
    resume(made.path, progress=False)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a file of each kind: values of clients in columns, links, devices and a timeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "MANY", 2)
        each = Evaluation(every=1, clients_every=1)
        peers = replace(BASE, algorithm=DPSGD(), topology=Static(Ring()), sampling=FixedSize(), evaluation=each)
        peers = replace(peers, clock=Clock())
        return run(peers, output=tmp_path_factory.mktemp("runs") / "peers", progress=False)


@pytest.mark.parametrize("name", ["clients/round-000002.npz", "clients/round-000004.npz", "devices.npz"])
def test_other_files_are_covered_by_the_checkpoints(
    name: str, peers: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of columns and of devices that are changed, and can be read, or are gone: found, refused, or accepted."""
    monkeypatch.setattr(evaluate, "MANY", 2)
    made = RunDirectory(shutil.copytree(peers.path, tmp_path / "made"))
    assert verify(made.path) == []
    file, said = made.seed_path(0) / name, name.split("/")[0]
    with np.load(file) as before:
        changed = {key: before[key] * (1 if before[key].dtype.kind == "i" else 1.5) for key in before.files}
    for damaged in (changed, None):
        file.unlink()
        if damaged:
            np.savez(file, **damaged)
        assert f"{made.seed_path(0) / said} was changed after the checkpoint of round 4" in verify(made.path)
    if damaged := None if name.endswith("4.npz") else changed:
        np.savez(file, **damaged)
        shutil.rmtree(made.seed_path(0) / "checkpoints/round-000004")
    made.mark(0, "interrupted")
    with pytest.warns(CheckpointWarning, match=f"{said} was changed after it was made"):
        if damaged:
            with pytest.raises(CheckpointError, match="--accept-changes"):
                resume(made.path, progress=False)
            resume(made.path, progress=False, accept_changes=True)
            assert made.manifest["accepted"][0]["metrics"]["0"]
        else:                                              # it is made again from the checkpoint before
            resume(made.path, progress=False)
            assert metrics_bytes(made) == metrics_bytes(peers) and not verify(made.path)


def test_links_and_timelines_are_verified(peers: RunDirectory, tmp_path: Path) -> None:
    made = RunDirectory(shutil.copytree(peers.path, tmp_path / "made"))
    edges, timeline = made.seed_path(0) / "edges.csv", made.seed_path(0) / "timeline.csv"
    lines = edges.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * made.manifest["clients"]
    edges.write_text("".join([*lines[:-1], lines[-1].replace(",", ",1")]))
    assert verify(made.path) == [f"{edges} has other bytes of links than the last checkpoint"]
    edges.unlink()
    assert verify(made.path) == [f"{edges} is missing"]
    edges.write_text("".join(lines))
    timeline.write_text("round,client\n")
    assert [fault[: len(str(timeline))] for fault in verify(made.path)] == [str(timeline)]


def test_settings_are_in_the_checkpoints(made: RunDirectory) -> None:
    """So that they cannot be edited in ``config.yaml`` together with the manifest."""
    shutil.rmtree(made.seed_path(0) / "checkpoints/round-000004")
    made.mark(0, "interrupted")
    config = {**made.config, "algorithm": {**made.config["algorithm"], "lr": 0.01}}
    (made.path / "config.yaml").write_text(yaml.safe_dump(config))
    made.update_manifest(settings_hash=settings_hash(config))
    assert [fault.partition(": ")[0].rpartition("/")[2] for fault in verify(made.path)] == [
        "round-000002 was made with other settings than config.yaml has",
    ]
    with pytest.warns(CheckpointWarning), pytest.raises(CheckpointError, match="other settings than it was made with"):
        resume(made.path, progress=False)
    resume(made.path, progress=False, accept_changes=True)
    assert made.manifest["accepted"][0]["settings"] and verify(made.path) == []
    resume(made.path, rounds=6, progress=False)
    assert verify(made.path) == []


def test_edited_metrics_are_not_continued(made: RunDirectory, whole: RunDirectory) -> None:
    """A change before both checkpoints is refused, one between them makes the run go back to the older one."""
    metrics = made.seed_path(0) / "metrics.jsonl"
    shutil.rmtree(made.seed_path(0) / "checkpoints/round-000004")
    made.mark(0, "interrupted")
    edit(metrics, '"value": 2', '"value": 3')
    with (
        pytest.warns(CheckpointWarning, match="metrics.jsonl was changed after it was made"),
        pytest.raises(CheckpointError, match=r"restore the file, or continue with it as it is: .* --accept-changes"),
    ):
        resume(made.path, progress=False)
    edited = metrics.read_bytes()
    assert made.manifest["status"]["0"]["state"] == "failed"
    resume(made.path, progress=False, accept_changes=True)
    assert made.manifest["status"]["0"]["state"] == "finished" and made.manifest["accepted"][0]["metrics"]["0"]
    assert metrics_bytes(made).startswith(edited[:500]) and metrics_bytes(made) != metrics_bytes(whole)


def test_an_older_checkpoint_that_fits_is_used(made: RunDirectory, whole: RunDirectory) -> None:
    """The metrics are shorter than the newest checkpoint says, or other after the older one."""
    metrics = made.seed_path(0) / "metrics.jsonl"
    text = metrics.read_text()
    for damaged in (text[: text.index('{"round": 4')], text.replace('"round": 4, ', '"round": 4,  ')):
        metrics.write_text(damaged)
        made.mark(0, "interrupted")
        with pytest.warns(CheckpointWarning, match="skipping the checkpoint .*round-000004: .*metrics.jsonl"):
            resume(made.path, progress=False)
        assert metrics_bytes(made) == metrics_bytes(whole) and verify(made.path) == []


def test_edited_settings_can_be_accepted(made: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(made.seed_path(0) / "checkpoints/round-000004")
    made.mark(0, "interrupted")
    config = made.config
    config["algorithm"]["lr"] = 0.01
    (made.path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RunError, match="--accept-changes"):
        resume(made.path, progress=False)
    assert main(["resume", str(made.path), "--accept-changes", "--quiet"]) == 0
    assert "config.yaml has other settings than the run began with: accepted" in capsys.readouterr().err
    assert verify(made.path) == [] and len(made.manifest["accepted"]) == 1


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(replace(BASE, seeds=2), output=tmp_path_factory.mktemp("runs") / "rich", progress=False)


@pytest.mark.slow
@pytest.mark.timeout(600 + DIRECTORIES)
def test_damaged_directories_are_no_tracebacks(
    rich: RunDirectory, peers: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a checkpoint covers is found by its hash, whatever was changed."""
    monkeypatch.setattr(evaluate, "MANY", 2)
    found = 0
    for number in range(DIRECTORIES):
        draw, before = random.Random(number), (rich if number % 2 else peers).path
        folder = Path(shutil.copytree(before, tmp_path / "damaged"))
        what = damage(folder, draw)
        try:
            faults = verify(folder)
            found += bool(faults)
            place = folder / what.partition(": ")[2]
            parts = place.parent.name.partition("-")[0], place.name
            covered = place.parent.is_dir() and (parts[0] in ("round", "clients") or parts[1] in EXACT)
            assert faults or not covered or not changed(before, folder), what
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(FedsimError):
                    compare(folder)
                if number % RESUMED == 0:
                    with contextlib.suppress(FedsimError):
                        resumed(folder)
        except Exception as error:
            error.add_note(f"directory {number}: {what}")
            raise
        shutil.rmtree(folder, ignore_errors=True)
    assert found > 0.7 * DIRECTORIES


def changed(before: Path, after: Path) -> bool:
    names = {path.relative_to(before) for path in before.rglob("*") if path.is_file()}
    return any(
        not (after / name).is_file() or (after / name).read_bytes() != (before / name).read_bytes() for name in names
    )


def resumed(folder: Path) -> None:
    directory = RunDirectory(folder)
    directory.mark(0, "interrupted")
    resume(folder, progress=False)
