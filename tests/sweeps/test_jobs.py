"""Sweeps of several runs at a time: how many, what each gets, and what an interruption leaves."""

from __future__ import annotations

import _thread
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fedsim
from algorithms import FedAvg
from fedsim.backends.ray.tasks import map_unordered
from fedsim.cli import main
from fedsim.engine.machine import cores, torch_threads
from fedsim.errors import ConfigError
from fedsim.experiment.config import to_config
from fedsim.experiment.execution import Execution, Ray
from fedsim.experiment.experiment import Experiment
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner
from fedsim.record.directory import open_run
from fedsim.sweeps import jobs
from fedsim.sweeps.grid import Point, Sweep, open_sweep
from tests.processes import LINGER, wait_until, wait_until_ended
from tests.sweeps.test_grid import SMALL, metrics, over

TINY = Experiment(FedAvg(0.3), partition=IidPartitioner(4), model=Logistic(), rounds=2, execution=Execution("loop"))


def test_a_sweep_from_python_runs_once(tmp_path: Path) -> None:
    axes = {f"lr={lr:g}": replace(TINY, algorithm=FedAvg(lr)) for lr in (0.1, 0.3)}
    made = fedsim.sweep(axes, output=tmp_path / "sweep", jobs=1, progress=False)
    assert not made.failures and [made.state(point) for point in made.points] == ["finished"] * 2
    alone = fedsim.run(axes["lr=0.3"], output=tmp_path / "alone", progress=False)
    assert metrics(made.path / "lr=0.3") == metrics(alone.path)
    before = {path: path.stat().st_mtime_ns for path in made.path.rglob("metrics.jsonl")}
    fedsim.sweep(axes, output=tmp_path / "sweep", jobs=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in made.path.rglob("metrics.jsonl")} == before


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "a sweep of no points"),
        ({"a/b": TINY}, "expected a plain directory name"),
        ({"own": replace(TINY, model=nn.Linear(64, 10))}, "cannot express own: .*fedsim.run for each point"),
    ],
)
def test_a_sweep_that_cannot_be_run_leaves_nothing(axes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fedsim.sweep(axes, root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def points(*experiments: Experiment) -> list[Point]:
    return [Point(f"p{k}", to_config(experiment)) for k, experiment in enumerate(experiments)]


@pytest.mark.parametrize("asking", [Execution("ray"), Execution(ray=Ray(actors=2))])
def test_experiments_with_actors_of_their_own_run_one_at_a_time(asking: Execution) -> None:
    todo = points(Experiment(FedAvg()), Experiment(FedAvg(), execution=asking))
    assert jobs.jobs_of(None, todo) == 1 and jobs.jobs_of(1, todo) == 1
    assert jobs.jobs_of(2, todo[1:]) == 1, "one point is left"
    with pytest.raises(ConfigError, match=r"--jobs is 2, but experiments use Ray actors .*; use --jobs 1, or"):
        jobs.jobs_of(2, todo)
    here = Experiment(FedAvg(), execution=replace(asking, backend="loop"))
    assert jobs.jobs_of(2, points(here, here)) == 2


def test_a_point_that_cannot_be_built_fails_alone() -> None:
    good, bad = points(Experiment(FedAvg()), Experiment(FedAvg()))
    assert jobs.jobs_of(2, [good, bad._replace(config={**bad.config, "rounds": "many"})]) == 2


def test_several_at_a_time_have_no_more_than_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several of them an experiment would start Ray within Ray."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    experiment = Experiment(FedAvg())
    todo = points(*[experiment] * 10)
    assert experiment.execution.uses_ray and not experiment.execution.asks_for_ray
    assert jobs.jobs_of(2, todo) == 2
    assert [jobs._gpus(todo, n) for n in (2, 4, 5, 8, 9)] == [1, 1, 1 / 2, 1 / 2, 1 / 3]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert not experiment.execution.uses_ray, "what a job sees"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert jobs._gpus(todo, 2) == 0


class FakeRay:
    """Calls that end in the order in which they began."""

    exceptions = SimpleNamespace(WorkerCrashedError=OSError, OutOfMemoryError=MemoryError)

    def __init__(self) -> None:
        self.cancelled: list[Any] = []

    def remote(self, **_: Any) -> Any:
        return lambda fn: SimpleNamespace(remote=lambda item: item)

    def wait(self, calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: Any) -> Any:
        return call

    def cancel(self, call: Any, force: bool) -> None:
        self.cancelled.append(call)


def test_what_runs_is_interrupted_wherever_ctrl_c_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only while results are waited for: also while one is written down."""
    ray = FakeRay()
    monkeypatch.setattr("fedsim.backends.ray.tasks.session", lambda **_: contextlib.nullcontext(ray))
    results = map_unordered(str, [1, 2, 3], jobs=3, cpus=1)
    with pytest.raises(KeyboardInterrupt), contextlib.closing(results):
        for item, _ in results:
            assert item == 1
            raise KeyboardInterrupt
    assert ray.cancelled == [2, 3]


class Calling(FakeRay):
    """Calls that are made here."""

    def remote(self, **_: Any) -> Any:
        return lambda fn: SimpleNamespace(remote=fn)


def heard(item: int) -> bool:
    """Whether Ray's way to cancel a call ends this one."""
    try:
        _thread.interrupt_main()
    except KeyboardInterrupt:
        return True
    return False


def test_calls_of_a_command_that_ignores_ctrl_c_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one in the background of a script does, and with it the processes that it starts."""
    monkeypatch.setattr("fedsim.backends.ray.tasks.session", lambda **_: contextlib.nullcontext(Calling()))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not heard(1)
        assert [result for _, result in map_unordered(heard, [1], jobs=1, cpus=1)] == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_survives_a_run_that_is_being_removed(tmp_path: Path) -> None:
    """As one is that cannot be run with its settings."""
    folder = tmp_path / "sweep"
    axes = ["--algorithm.lr", "0.05,0.5", "--rounds", "2", "--jobs", "1"]
    assert main(["sweep", *over(SMALL, *axes), "--output", str(folder)]) == 0
    sweep = open_sweep(folder)
    (sweep.directory(sweep.points[0]) / "manifest.json").unlink()
    assert sweep.done() == (2, 4)


@pytest.mark.timeout(1800)                                 # on a machine that is busy with other things
@pytest.mark.ray
def test_several_at_a_time_through_ctrl_c_and_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C leaves checkpoints and a message, kill -9 what was there; both go on to the measurements of one process.

    One of the points fails, the others wait for the signal in rounds 2 and 5, and nothing of Ray is left behind.
    """
    settings = ["--rounds", "7", "--checkpoint_every", "3", "--algorithm.folder", str(tmp_path)]
    settings += ["--algorithm.lr", "1e39,0.05,0.5"]
    sweep = ["sweep", *over(SMALL, "--algorithm", "tests.backends.ray.dying.Waiting", *settings)]
    go = [tmp_path / f"{round}-go" for round in (2, 5)]
    for path in go:
        path.touch()
    threads = str(max(1, cores() // 2))                    # those of each of two jobs
    assert main([*sweep, "--jobs", "1", "--threads", threads, "--output", str(tmp_path / "whole")]) == 1
    for path in go:
        path.unlink()
        path.with_name(path.name.removesuffix("-go")).unlink()
    folder, temporary = tmp_path / "sweep", tmp_path / "t"
    temporary.mkdir()
    argv = [sys.executable, "-m", "fedsim", *sweep, "--jobs", "2", "--output", str(folder)]
    env = {**os.environ, "TMPDIR": str(temporary)}
    for round, stop, code in ((2, signal.SIGINT, 130), (5, signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda round=round: (tmp_path / str(round)).exists() and open_sweep(folder).failures)
                process.send_signal(stop)
                _, error = process.communicate(timeout=240)
            finally:
                process.kill()                             # or Ray is left running beside other tests
        assert process.returncode == code, error
        if stop == signal.SIGINT:
            assert f"continue with: fedsim resume {folder}" in error and "Traceback" not in error
            assert not list(Path("/tmp").glob(f"fedsim-ray-{process.pid}-*"))
        wait_until_ended(temporary, besides=LINGER)
        (tmp_path / f"{round}-go").touch()
    assert "DivergenceError: Waiting.client in round 1" in open_sweep(folder).failures["lr=1e39"]
    assert 0 < measured(folder) < measured(tmp_path / "whole")
    assert main(["resume", str(folder), "--jobs", "1", "--quiet", "--allow", "tests.backends.ray.dying"]) == 1
    assert "1 of 3 points failed" in capsys.readouterr().err
    assert metrics(folder) == metrics(tmp_path / "whole")


OWN = '''
from tests.backends.ray.dying import Waiting
class Own(Waiting):
    def client(self, local, *arguments):
        message, memory = super().client(local, *arguments)
        return tuple({scale} * part for part in message), memory
'''


@pytest.mark.timeout(1800)
@pytest.mark.ray
def test_stale_points_run_again_several_at_a_time_through_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had begun when it was killed is of the new code: all points are as if run by it in one process."""
    module, go, temporary = tmp_path / "code" / "own_method.py", tmp_path / "5-go", tmp_path / "t"
    module.parent.mkdir()
    module.write_text(OWN.format(scale=1))
    monkeypatch.syspath_prepend(module.parent)
    settings = ["--rounds", "7", "--checkpoint_every", "3", "--threads", "1", "--algorithm.folder", str(tmp_path)]
    settings += ["--algorithm.lr", "0.05,0.1,0.5"]
    sweep = ["sweep", *over(SMALL, "--algorithm", "own_method.Own", "--algorithm.waits", "[5]", *settings)]
    folder = tmp_path / "sweep"
    go.touch()
    assert main([*sweep, "--jobs", "1", "--output", str(folder)]) == 0
    before = metrics(folder)
    go.unlink()
    (tmp_path / "5").unlink()
    module.write_text(OWN.format(scale=0.5))
    del sys.modules["own_method"]
    temporary.mkdir()
    argv = [sys.executable, "-m", "fedsim", *sweep, "--jobs", "2", "--output", str(folder)]
    env = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([str(module.parent), *sys.path])}
    with subprocess.Popen(argv, env=env) as process:
        try:
            wait_until((tmp_path / "5").exists)
        finally:
            process.kill()
    wait_until_ended(temporary, besides=LINGER)
    go.touch()
    assert metrics(folder / ".stale") == before, "nothing is lost"
    assert main([*sweep, "--jobs", "1", "--output", str(folder)]) == 0
    assert main([*sweep, "--jobs", "1", "--output", str(tmp_path / "fresh")]) == 0
    after = {name: content for name, content in metrics(folder).items() if not name.startswith(".stale")}
    assert after == metrics(tmp_path / "fresh") and not after.items() & before.items()


class Killed(BaseException):
    """What no part of fedsim handles, like SIGKILL."""


@pytest.mark.slow
def test_killed_after_any_number_of_points_it_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {f"lr={lr:g}": replace(TINY, algorithm=FedAvg(lr)) for lr in (0.1, 0.3, 0.5)}
    whole = fedsim.sweep(axes, output=tmp_path / "whole", jobs=1, progress=False)
    note = Sweep.note
    for finished in range(len(axes) + 1):
        folder, noted = tmp_path / f"{finished}", iter(range(len(axes)))

        def die(sweep: Sweep, *point: Any, noted: Any = noted, finished: int = finished) -> None:
            if next(noted) == finished:
                raise Killed                               # the point is done, and nobody has noted it
            note(sweep, *point)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Sweep, "note", die)
            fedsim.sweep(axes, output=folder, jobs=1, progress=False)
        again = open_sweep(folder)
        assert not fedsim.sweep(axes, output=folder, jobs=1, progress=False).failures
        files = [f"{point.name}/seed-0/metrics.jsonl" for point in again.points]
        assert [(folder / file).read_bytes() for file in files] == [(whole.path / file).read_bytes() for file in files]
        assert again.threads(99) == whole.threads(99) != 99


@pytest.mark.slow
def test_threads_are_decided_once(tmp_path: Path) -> None:
    """A sweep that is continued with fewer points or jobs has those that it began with; its points may have others."""
    before, folder = torch.get_num_threads(), tmp_path / "sweep"
    several, more = before + 1, before + 2
    with torch_threads(several):
        axes = ["--algorithm.lr", "0.05,0.5", "--threads", f"null,{more}"]
        assert main(["sweep", *SMALL, *axes, "--jobs", "1", "--output", str(folder)]) == 0
    sweep = open_sweep(folder)
    runs = [open_run(sweep.directory(point)) for point in sweep.points]
    assert sweep.manifest["threads"] == several
    assert [run.manifest["threads"] for run in runs] == [several, more] * 2
    shutil.rmtree(runs[0].path)
    assert main(["resume", str(folder), "--jobs", "1", "--quiet"]) == 0
    assert runs[0].manifest["threads"] == several and torch.get_num_threads() == before


def measured(folder: Path) -> int:
    """Bytes of all measurements below a folder."""
    return sum(path.stat().st_size for path in folder.glob("*/seed-*/metrics.jsonl"))
