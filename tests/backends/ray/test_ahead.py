"""Asynchronous tasks that several actors compute at a time, and what can happen to those under way."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import FedAsync, FedBuff
from fedsim import Clock, Evaluation, Execution, Experiment, LocalWork, LogNormal, resume, run
from fedsim.backends.ray.ahead import Ahead
from fedsim.backends.ray.object_store import ObjectStore
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.backends.ray.ray_host import ActorPlan, RayHost
from fedsim.clients import cohort
from fedsim.controller.foresight import Foresight
from fedsim.controller.prepare import prepare
from fedsim.controller.rounds import SeedRun
from fedsim.engine.federation import Meter
from fedsim.errors import ClientError, DivergenceError
from fedsim.experiment.execution import Ray
from fedsim.problems import zeta_least_squares
from fedsim.record.checkpoint import load_latest
from tests.backends.ray.moody import Moody
from tests.backends.ray.shared import measured, measured_here, workers

pytestmark = pytest.mark.ray

SMALL = Experiment(
    FedAsync(lr=0.02),
    data=zeta_least_squares(n=8, d=6, seed=0),
    local=LocalWork(batch_size=0, steps=2),
    rounds=12,
    evaluation=Evaluation(every=1),
    dtype="float64",
    clock=Clock(seconds=LogNormal(0.01, 1.0), latency=0.01),
    concurrency=4,
    execution=Execution("loop", checkpoint_every=5),
)


class Listening(RayHost):
    """Two actors, with clients one by one; keeps what it says, and how many calls are under way when one begins."""

    def __init__(self) -> None:
        super().__init__(Ray(), progress=False, workers=workers())
        self.said, self.under_way = list[str](), list[int]()
        self.say = self.said.append

    def _plan(self, *_: Any) -> ActorPlan:
        return ActorPlan(0)                                # as chosen by trials, in which clients have their moods too


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Listening:
    made, begin, receive = Listening(), Ahead._begin, Ahead._receive
    calls = set[int]()

    def begun(self: Ahead, call: Any) -> Any:
        calls.add(id(call))
        made.under_way.append(len(calls))
        return begin(self, call)

    def received(self: Ahead, call: Any, *rest: Any) -> Any:
        calls.discard(id(call))
        return receive(self, call, *rest)

    monkeypatch.setattr(Ahead, "_begin", begun)
    monkeypatch.setattr(Ahead, "_receive", received)
    return made


def there(experiment: Experiment, path: Path, host: RayHost) -> Path:
    return run(experiment.with_execution(backend="ray", block_size=0), output=path, progress=False, host=host).path


def test_calls_begin_at_the_actor_that_has_least_to_do_and_nobody_waits(tmp_path: Path) -> None:
    prepared = prepare(SMALL, 0)
    fed = replace(prepared.federation, backend=RayActors(workers(), 0), memory=ObjectStore(workers().ray))
    x, foresight = fed.model.vector(), Foresight(fed.work.samples(fed.shards.sizes))
    method = Moody(0.02, folder=str(tmp_path), at_task=2)
    sent, meter = cohort(fed, 1).each(method.client, x), Meter(fed)
    foresight.costs = x.nbytes, 1, int(sent.messages.sizes()[0])
    ahead = RayHost(Ray(), workers=workers()).ahead(fed, foresight)
    assert isinstance(ahead.backend, Ahead)
    sent = [cohort(ahead, 2, np.array([i]), meter).each(method.client, x) for i in range(4)]
    assert Counter(ahead.backend._running.values()) == {0: 2, 1: 2}
    end = time.monotonic() + 60
    while len([*tmp_path.iterdir()]) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len([*tmp_path.iterdir()]) == 2, "two processes compute at a time"
    (tmp_path / "go").touch()
    here, alone = cohort(prepared.federation, 2, meter=(other := Meter(fed))), FedAsync(0.02)
    for row, got in zip(here.only(np.arange(8) < 4).each(alone.client, x).stacked, sent, strict=True):
        assert torch.equal(row, got.stacked[0])
    assert meter.ledger.totals() == other.ledger.totals()


@pytest.mark.parametrize(("method", "most"), [(FedAsync(0.02), 3), (FedBuff(0.02, buffer=2), 2)], ids=["1", "2"])
def test_tasks_overlap_and_results_are_those_of_one_process(
    method: Any, most: int, host: Listening, tmp_path: Path
) -> None:
    experiment = replace(SMALL, algorithm=method)
    here = run(experiment, output=tmp_path / "here", progress=False).path
    path = there(experiment, tmp_path / "there", host)
    assert measured(path) == measured(here) and max(host.under_way) >= most
    a, b = (load_latest(made / "seed-0" / "checkpoints") for made in (here, path))
    assert a is not None and b is not None
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
    for left, right in zip(a.memories["clock.messages"], b.memories["clock.messages"], strict=True):
        assert left.ids == right.ids
        assert all(map(torch.equal, left.columns, right.columns)), "messages that are still under way"


def test_a_run_that_is_stopped_goes_on(host: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = SeedRun._evaluate

    def stopped(self: SeedRun, record: Any, round: int, *rest: Any) -> Any:
        if round == 8:
            raise KeyboardInterrupt
        return evaluate(self, record, round, *rest)

    experiment = SMALL.with_execution(backend="ray", block_size=0)
    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "_evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, output=tmp_path / "run", progress=False, host=host)
    made = load_latest(tmp_path / "run" / "seed-0" / "checkpoints")
    assert made is not None and made.round == 7, "what was under way has been waited for"
    path = resume(tmp_path / "run", experiment, progress=False, host=host).path
    assert measured(path) == measured_here(SMALL, tmp_path / "here")


def test_a_worker_dies_with_a_task(host: Listening, tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    method = Moody(0.02, mood="kill", folder=str(tmp_path / "once"), driver=os.getpid())
    path = there(replace(SMALL, algorithm=method), tmp_path / "run", host)
    assert any((tmp_path / "once").iterdir())
    assert any(re.match(r"server step \d+ again: a worker died", text) for text in host.said)
    assert measured(path) == measured_here(SMALL, tmp_path / "here")


def test_costs_that_change_later(host: Listening, tmp_path: Path) -> None:
    """Events have depended on the wrong costs: the run goes back, and measures what it does in one process."""
    experiment = replace(SMALL, algorithm=Moody(0.02, mood="evaluate more"))
    path = there(experiment, tmp_path / "run", host)
    assert sum("tasks do not all cost the same" in text for text in host.said) == 1 and not host.foresees
    assert measured(path) == measured_here(experiment, tmp_path / "here")


@pytest.mark.parametrize(("mood", "error"), [("raise", ClientError), ("diverge", DivergenceError)])
def test_an_error_is_raised_when_the_message_is_needed(
    mood: Any, error: type[Exception], host: Listening, tmp_path: Path
) -> None:
    experiment = replace(SMALL, algorithm=Moody(0.02, mood=mood))
    with pytest.raises(error) as here:
        run(experiment, output=tmp_path / "here", progress=False)
    with pytest.raises(error) as away:
        there(experiment, tmp_path / "run", host)
    assert str(here.value).splitlines()[0] == str(away.value).splitlines()[0]
    assert measured(tmp_path / "run").startswith(measured(tmp_path / "here")), "later than in one process, if at all"
