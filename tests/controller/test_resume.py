"""Nothing is lost or changed by an interruption: killed, corrupted, resumed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import FedSpeed
from fedsim import Execution, resume, run
from fedsim.controller.verify import verify
from fedsim.data import load
from fedsim.errors import ConfigError, RunError
from fedsim.record.checkpoint import CheckpointWarning
from fedsim.record.directory import RunDirectory
from tests.checkpoints import content
from tests.controller.test_run import SMALL, metrics_bytes
from tests.processes import wait_until

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tests.controller.test_run import SMALL
from fedsim import run
import fedsim.record.checkpoint as checkpoint
from fedsim.clients import Clients
each, calls = Clients.each, 0
def slow(self, *a, **k):
    global calls
    calls += 1
    out = each(self, *a, **k)
    if calls == 8:                       # in the middle of round 8: the clients are done, the server is not
        print("now", flush=True)
        while True: time.sleep(0.05)     # a signal that comes just before a sleep waits until its end
    return out
Clients.each = slow
signal.signal(signal.SIGHUP, signal.SIG_DFL)       # under nohup it is ignored, here too
run(SMALL, output=Path(sys.argv[1]), progress=False)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.process
def test_killed_in_mid_round_and_resumed_gives_the_same_bytes(tmp_path: Path, kind: signal.Signals) -> None:
    whole = run(SMALL, output=tmp_path / "whole", progress=False)
    argv, pipe = [sys.executable, "-c", SCRIPT, str(tmp_path / "cut")], subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "now\n"
            child.send_signal(kind)
            _, stderr = child.communicate(timeout=240)
        finally:
            child.kill()                     # or it is left running, and a later test is told so
    assert child.returncode != 0, stderr
    cut = RunDirectory(tmp_path / "cut")
    state = cut.manifest["status"]["0"]["state"]
    assert state == ("running" if kind == signal.SIGKILL else "interrupted")
    kept = sorted(p.name for p in (cut.seed_path(0) / "checkpoints").iterdir())
    assert kept == (["round-000005"] if kind == signal.SIGKILL else ["round-000005", "round-000007"])
    resume(cut.path, progress=False)
    assert metrics_bytes(cut) == metrics_bytes(whole)
    assert cut.manifest["status"]["0"]["state"] == "finished"
    assert content(whole.seed_path(0) / "checkpoints") == content(cut.seed_path(0) / "checkpoints")


@pytest.mark.process
def test_ctrl_c_six_times_in_a_row_is_one_interruption(tmp_path: Path) -> None:
    """What the first one has begun is not disturbed: the checkpoint, the state, the one line, nor the exit."""
    words = ["run", "--algorithm", "Scaffold", "--rounds", "1000000", "--evaluation.every", "1", "--backend", "loop"]
    argv = [sys.executable, "-m", "fedsim", *words, "--quiet", "--output", str(tmp_path / "run")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
        try:
            rows = tmp_path / "run/seed-0/metrics.jsonl"
            wait_until(lambda: rows.exists() and b'"round": 2,' in rows.read_bytes())
            for _ in range(6):
                child.send_signal(signal.SIGINT)
                time.sleep(0.03)
            _, said = child.communicate(timeout=240)
        finally:
            child.kill()
    assert (child.returncode, said) == (130, f"fedsim: interrupted; continue with: fedsim resume {tmp_path / 'run'}\n")
    made = RunDirectory(tmp_path / "run")
    assert made.manifest["status"]["0"]["state"] == "interrupted" and verify(made.path) == []
    assert list((made.seed_path(0) / "checkpoints").iterdir())


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    directory = run(replace(SMALL, rounds=3), root=tmp_path, progress=False)
    before = metrics_bytes(directory), directory.manifest
    resume(directory.path, progress=False)
    assert (metrics_bytes(directory), directory.manifest) == before


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    whole = run(SMALL, output=tmp_path / "whole", progress=False)
    shard = whole.seed_path(0) / "checkpoints/round-000012/shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    expected = metrics_bytes(whole)
    whole.mark(0, "interrupted")
    with pytest.warns(CheckpointWarning, match="round-000012"):
        resume(whole.path, progress=False)
    assert metrics_bytes(whole) == expected


def test_changed_data_are_refused_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run(replace(SMALL, rounds=3), root=tmp_path, progress=False)
    directory.mark(0, "interrupted")
    directory.update_manifest(data_hash="0" * 64)
    with pytest.raises(RunError, match="restore the data"):
        resume(directory.path, progress=False)


def test_another_experiment_is_refused_on_resume(tmp_path: Path) -> None:
    directory = run(replace(SMALL, rounds=3), root=tmp_path, progress=False)
    directory.mark(0, "interrupted")
    other = replace(SMALL, rounds=3, algorithm=FedSpeed(lr=0.2), local=replace(SMALL.local, batch_size=4))
    with pytest.raises(RunError, match="was run with other settings of algorithm, local; resume it with its own"):
        resume(directory.path, other, progress=False)
    resume(directory.path, replace(SMALL, rounds=3).with_execution(checkpoint_every=1), progress=False)
    assert directory.manifest["status"]["0"]["state"] == "finished"


def test_another_execution_gives_the_same_bytes(tmp_path: Path) -> None:
    """Clients stay in the blocks that they were in, on which the last digits depend."""
    directory = run(replace(SMALL, rounds=7), output=tmp_path / "run", progress=False)
    before = metrics_bytes(directory)
    shutil.rmtree(directory.seed_path(0) / "checkpoints/round-000007")
    directory.mark(0, "interrupted")
    other = replace(SMALL, rounds=7, execution=Execution("loop", device="cpu", memory="disk", name="other"))
    resume(directory.path, other, progress=False)
    assert metrics_bytes(directory) == before
    assert directory.manifest["backend"]["0"]["block_size"] == SMALL.execution.block_size


def test_a_finished_run_of_objects_made_in_python_needs_none_to_resume(tmp_path: Path) -> None:
    directory = run(replace(SMALL, rounds=2, data=load("digits")), root=tmp_path, progress=False)
    assert resume(directory.path, progress=False).path == directory.path
    directory.mark(0, "interrupted")
    with pytest.raises(ConfigError, match="was made in Python"):
        resume(directory.path, progress=False)


def test_a_finished_run_is_not_taken_for_another_experiment(tmp_path: Path) -> None:
    made = run(replace(SMALL, rounds=1), output=tmp_path / "run", progress=False)
    assert resume(made.path, replace(SMALL, rounds=1), progress=False).path == made.path
    with pytest.raises(RunError, match=r"was run with other settings of rounds; resume it with its own experiment"):
        resume(made.path, replace(SMALL, rounds=2), progress=False)
