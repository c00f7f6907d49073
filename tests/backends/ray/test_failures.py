"""Workers that die, devices that are full, clients that raise: the run goes on to the same bits, or says why not."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from algorithms import Scaffold
from fedsim import Evaluation, Experiment, FixedSize, run
from fedsim.backends.ray.ray_host import MOST_ATTEMPTS, ActorPlan, RayHost, share_by_time, share_of
from fedsim.errors import BlockError, ClientError, ConfigError, DivergenceError, RunError
from fedsim.experiment.execution import Execution, OnError, Ray
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner
from fedsim.record.directory import RunDirectory
from tests.backends.ray.dying import Branching, Dying
from tests.backends.ray.shared import measured, measured_here, workers

pytestmark = pytest.mark.ray

BASE = Experiment(
    Scaffold(),
    partition=IidPartitioner(10),
    model=Logistic(),
    sampling=FixedSize(0.8),
    rounds=5,
    evaluation=Evaluation(every=1),
    execution=Execution("blocks", block_size=2),
)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Measurements of the run in this process."""
    return measured_here(BASE, tmp_path_factory.mktemp("here") / "run")


class Listening(RayHost):
    """Keeps what it says."""

    def __init__(self, settings: Ray) -> None:
        super().__init__(settings, workers=workers())
        self.said: list[str] = []
        self.say = self.said.append


def dying(kind: Any, once: Path | None = None, **fields: Any) -> Dying:
    return Dying(kind=kind, once=str(once or ""), driver=os.getpid(), **fields)


def run_there(algorithm: Any, path: Path, on_error: OnError = "stop", block_size: int = 2) -> tuple[Path, list[str]]:
    """A run in the actors: its directory, and what it said."""
    host = Listening(Ray(on_error=on_error))
    experiment = replace(BASE, algorithm=algorithm).with_execution(backend="ray", block_size=block_size)
    return run(experiment, output=path, progress=False, host=host).path, host.said


def test_a_run_without_failure(one_process: bytes, tmp_path: Path) -> None:
    path, said = run_there(Scaffold(), tmp_path / "run")
    assert measured(path) == one_process
    assert said[0].startswith("ray: 2 actors on 1 machine x 4 clients a round, 1 thread and about 0.")
    backend = json.loads((path / "manifest.json").read_text())["backend"]["0"]
    assert backend == {"backend": "ray", "block_size": 2, "actors": 2}


def test_bfloat16_is_that_of_one_process(one_process: bytes, tmp_path: Path) -> None:
    low = replace(BASE, precision="bf16")
    there = low.with_execution(backend="ray")
    path = run(there, output=tmp_path / "there", progress=False, host=Listening(Ray())).path
    assert measured(path) == measured_here(low, tmp_path / "here") != one_process


def test_a_worker_is_killed_in_mid_round(one_process: bytes, tmp_path: Path) -> None:
    processes = {fact.process for fact in workers().get([a.ready.remote() for a in workers()._actors])}
    path, said = run_there(dying("kill", tmp_path / "once"), tmp_path / "run")
    assert measured(path) == one_process
    assert (tmp_path / "once").exists() and any(s.startswith("round 3 again: a worker died") for s in said)
    after = {fact.process for fact in workers().get([a.ready.remote() for a in workers()._actors])}
    assert len(after) == 2 and len(after & processes) == 1, "one was started again"


def test_a_worker_is_killed_between_a_round_and_its_evaluation(one_process: bytes, tmp_path: Path) -> None:
    class Killing(Listening):
        def round(self, algorithm: Any, state: Any, federation: Any, meter: Any, round: int, ids: Any) -> Any:
            new = super().round(algorithm, state, federation, meter, round, ids)
            if round == 2:
                facts = workers().get([actor.ready.remote() for actor in workers()._actors])
                os.kill(facts[0].process, signal.SIGKILL)
            return new

    host = Killing(Ray())
    path = run(BASE.with_execution(backend="ray"), output=tmp_path / "run", progress=False, host=host).path
    assert measured(path) == one_process
    assert next(s for s in host.said if "again" in s).startswith("evaluation again: a worker died")


def test_a_worker_that_always_dies_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"round 2 was lost {MOST_ATTEMPTS} times; the last time: a worker died"):
        run_there(dying("kill", at_round=2), tmp_path / "run")
    assert b'"round": 1,' in measured(tmp_path / "run") and b'"round": 2,' not in measured(tmp_path / "run")


def test_a_full_device_halves_the_blocks(one_process: bytes, tmp_path: Path) -> None:
    """The error is PyTorch's own, raised by a client in place of a GPU that is full."""
    path, said = run_there(dying("full", tmp_path / "once"), tmp_path / "run", block_size=4)
    assert any("out of memory: blocks of 2 clients from here on" in s for s in said)
    assert len(measured(path)) == pytest.approx(len(one_process), rel=0.01)
    with pytest.raises(RunError, match="no memory for a single client"):
        run_there(dying("full"), tmp_path / "never", block_size=4)


def test_a_client_that_raises_is_named_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as raised:
        run_there(dying("raise"), tmp_path / "run")
    text = str(raised.value)
    assert raised.value.ids == [7]
    assert text.startswith("Dying.client in round 3: client 7 raised ValueError: somebody's bug\n")
    assert 'dying.py", line' in text and "raise ValueError" in text and "During handling" not in text
    assert list((tmp_path / "run" / "seed-0" / "checkpoints").glob("round-000002"))


def test_skip_does_the_round_without_the_client(one_process: bytes, tmp_path: Path) -> None:
    path, said = run_there(dying("raise"), tmp_path / "run", "skip")
    assert any("client 7 raised ValueError: somebody's bug; policy: skip" in s for s in said)
    timing = (path / "seed-0" / "timing.jsonl").read_text()
    skipped = [row for row in map(json.loads, timing.splitlines()) if row["metric"] == "skipped"]
    assert skipped == [{"round": 3, "scope": "round", "node": 7, "metric": "skipped", "value": 1.0}]
    before, after = (measured_round(measured(path), r) == measured_round(one_process, r) for r in (2, 3))
    assert before and not after
    totals = [[measured_round(data, r)["bytes_up"] for r in (2, 3)] for data in (measured(path), one_process)]
    ups = [after - before for before, after in totals]
    assert ups[0] == pytest.approx(ups[1] * 7 / 8), "one of eight sent nothing"


def test_all_clients_that_raise_are_skipped_at_once(tmp_path: Path) -> None:
    cohort = BASE.participation.cohort(0, 3, 10).tolist()
    path, said = run_there(dying("raise", nodes=tuple(cohort[:-1])), tmp_path / "run", "skip")
    assert sum("round 3 again" in s for s in said) == 1
    timing = map(json.loads, (path / "seed-0" / "timing.jsonl").read_text().splitlines())
    assert [row["node"] for row in timing if row["metric"] == "skipped"] == cohort[:-1]


def test_a_round_in_which_every_client_raises_ends_the_run(tmp_path: Path) -> None:
    """With a checkpoint of the round before: nobody is left whom the policy could go on with."""
    host = Listening(Ray(on_error="skip"))
    broken = replace(BASE, algorithm=dying("raise", nodes=tuple(range(10))))
    broken = broken.with_execution(backend="ray", block_size=2)
    with pytest.raises(ClientError, match=r"in round 3: .* raised ValueError: somebody's bug"):
        run(broken, output=tmp_path / "run", progress=False, host=host)
    assert host.said[-1] == "every client of the round raised, so that skipping them leaves none; the run stops"
    assert RunDirectory(tmp_path / "run").manifest["status"]["0"]["state"] == "failed"
    assert list((tmp_path / "run" / "seed-0" / "checkpoints").glob("round-000002"))
    assert b'"round": 2,' in measured(tmp_path / "run") and b'"round": 3,' not in measured(tmp_path / "run")


def test_retry_does_the_round_again(one_process: bytes, tmp_path: Path) -> None:
    path, said = run_there(dying("raise", tmp_path / "once"), tmp_path / "run", "retry")
    assert measured(path) == one_process and any("policy: retry" in s for s in said)
    with pytest.raises(ClientError):
        run_there(dying("raise"), tmp_path / "never", "retry")


def test_code_that_cannot_run_for_many_clients_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BlockError, match=r"(?s)Branching\.client in round 1.*torch\.where.*--backend loop"):
        run_there(Branching(), tmp_path / "run")


def test_code_that_cannot_run_for_many_clients_runs_for_one_at_a_time(tmp_path: Path) -> None:
    """The block size is free, and blocks are what a measurement before would have chosen."""
    host = Listening(Ray())
    host._plan = lambda *_: ActorPlan(2)                   # type: ignore[method-assign]
    experiment = replace(BASE, algorithm=Branching()).with_execution(backend="ray", block_size=0)
    path = run(experiment, output=tmp_path / "run", progress=False, host=host).path
    chosen = json.loads((path / "manifest.json").read_text())["backend"]["0"]
    assert sum("clients run one at a time from here on" in said for said in host.said) == 1
    here = run(experiment.with_execution(backend="loop"), output=tmp_path / "here", progress=False)
    assert measured(path) == measured(here.path) and chosen["block_size"] in (0, 2)


def test_a_message_that_is_not_finite_is_refused_as_in_one_process(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"Scaffold.client in round 1: client \d"):
        run_there(Scaffold(lr=1e39), tmp_path / "run")


def test_shares_of_a_gpu() -> None:
    gib = 2**30
    assert share_of(8 * gib, 80 * gib) == 1 / 7           # 8 GiB with a reserve, and what a process takes itself
    assert share_of(60 * gib, 80 * gib) == 1
    assert [share_by_time(t, 1.0) for t in (0.5, 1.9, 2.1, 3.5, 90.0)] == [1, 1, 1 / 2, 1 / 3, 1 / 4]
    assert share_by_time(90.0, 0.0) == 1, "nobody can tell"
    with pytest.raises(ConfigError, match=r"needs 96.6 GiB on a GPU that has 80.0 GiB"):
        share_of(80 * gib, 80 * gib)


def measured_round(data: bytes, round: int) -> dict[str, float]:
    rows = [json.loads(line) for line in data.splitlines()]
    return {row["metric"]: row["value"] for row in rows if row["round"] == round and row["node"] is None}
