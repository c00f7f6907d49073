"""Retries: rounds that are lost, devices that are full, clients that raise. No Ray is
started, as what goes wrong is made up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray import exceptions as _exceptions

from algorithms import DFedAvg, FedAvg
from fedsim import Experiment, FixedSize, LocalWork
from fedsim.algorithm import Algorithm
from fedsim.backends.ray import ray_host as hosts
from fedsim.backends.ray import tasks as pool
from fedsim.backends.ray.actor import Worker
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.protocol import ClientFailure, Report, Usage
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.backends.ray.ray_host import MOST_ATTEMPTS, MOST_ON_A_GPU, ActorPlan, RayHost, share_of
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.graphed import Graphed
from fedsim.errors import BlocksLostError, ClientError, RoundLostError, RunError
from fedsim.experiment.execution import OnError, Ray
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner
from topologies import Ring, Static

exceptions: Any = _exceptions                          # without types
FEW = Experiment(FedAvg(), partition=IidPartitioner(40), model=Logistic())
GIB = 2**30


class Made:
    """An algorithm whose rounds, and initialisation, are what a function makes of the cohort and the attempt."""

    def __init__(self, fate: Callable[[list[int], int], None]) -> None:
        self.fate, self.cohorts = fate, list[list[int]]()

    def init(self, x: Any, clients: Any) -> str:
        """As a round."""
        return self.round(x, clients)

    def round(self, s: Any, clients: Any) -> str:
        """Note the cohort."""
        self.cohorts.append(clients.ids.tolist())
        assert len(self.cohorts) < 100, "it is done again for ever"
        self.fate(self.cohorts[-1], len(self.cohorts))
        return "done"


def host(on_error: OnError = "stop") -> RayHost:
    made = RayHost(Ray(on_error=on_error), workers=SimpleNamespace(ray=None))  # type: ignore[arg-type]
    made.say = lambda text: None
    return made


def rounds(fate: Callable[[list[int], int], None], on_error: OnError = "stop", backend: Any = None) -> list[list[int]]:
    """The cohorts with which a round of 20 clients is tried."""
    algorithm: Any = Made(fate)
    fed = replace(prepare(FEW, 0).federation, backend=backend)
    host(on_error).round(algorithm, None, fed, Meter(fed), 1, np.arange(20))
    return list(algorithm.cohorts)


def raising(*ids: int) -> ClientError:
    return ClientError(list(ids), "Made.client", 1, "ValueError: no", "")


def test_lost_rounds_are_counted_beside_clients_that_raise() -> None:
    def fate(cohort: list[int], attempt: int) -> None:
        if attempt <= 3:
            raise raising(cohort[0])
        raise RoundLostError("a worker died")

    with pytest.raises(RunError, match=f"round 1 was lost {MOST_ATTEMPTS} times; the last time: a worker died"):
        rounds(fate, "skip")


def test_initialisation_is_done_again() -> None:
    def fate(cohort: list[int], attempt: int) -> None:
        if attempt < MOST_ATTEMPTS:
            raise RoundLostError("a worker died")

    made: Any = Made(fate)
    fed = prepare(FEW, 0).federation
    assert host().init(made, fed.model.vector(), fed, Meter(fed), template=False) == "done"
    assert len(made.cohorts) == MOST_ATTEMPTS


def test_blocks_are_halved_as_often_as_it_takes() -> None:
    backend = RayActors(SimpleNamespace(ray=None), 100)  # type: ignore[arg-type]
    none = np.zeros(0, np.int64)
    full = Report(none, none, none, none, None, None, None, ClientFailure([], "OutOfMemoryError", "", full=True))
    sizes = []

    def fate(cohort: list[int], attempt: int) -> None:
        sizes.append(backend.block_size)
        if backend.block_size > limit:
            backend._check([full], "Made.client 0", 1)

    limit = 5
    rounds(fate, backend=backend)
    assert sizes == [100, 50, 25, 12, 6, 3]
    limit = 0
    with pytest.raises(RunError, match="a device has no memory for a single client: OutOfMemoryError; use a smaller"):
        rounds(fate, backend=backend)


def test_skip_goes_on_as_long_as_somebody_is_left() -> None:
    def fate(cohort: list[int], attempt: int) -> None:
        if cohort != [19]:
            raise raising(cohort[0])

    assert rounds(fate, "skip") == [list(range(k, 20)) for k in range(20)]
    with pytest.raises(ClientError):
        rounds(lambda cohort, attempt: fail(raising(*cohort))(), "skip")


def test_skip_does_not_go_on_with_the_same_clients() -> None:
    """The method runs a client that is not in the cohort."""
    def fate(cohort: list[int], attempt: int) -> None:
        raise raising(30)

    with pytest.raises(ClientError):
        rounds(fate, "skip")


def test_retry_is_tried_so_often() -> None:
    def fate(cohort: list[int], attempt: int) -> None:
        if attempt < tries:
            raise raising(cohort[0])

    tries = MOST_ATTEMPTS
    assert rounds(fate, "retry") == [list(range(20))] * MOST_ATTEMPTS
    tries += 1
    with pytest.raises(ClientError):
        rounds(fate, "retry")


def fail(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


def test_a_worker_that_the_memory_monitor_killed_has_died() -> None:
    there: Any = Workers.__new__(Workers)
    there.ray = SimpleNamespace(get=fail(exceptions.OutOfMemoryError("task killed")), exceptions=exceptions)
    with pytest.raises(RoundLostError, match="a worker died: task killed"):
        there.get([])
    assert there._suspect


def test_a_sweep_goes_on_without_a_point_that_the_memory_monitor_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        def options(self, **_: Any) -> Task:
            return self

        def remote(self, item: int) -> int:
            return item

    def get(call: int) -> str:
        if call == 1:
            raise exceptions.OutOfMemoryError("task killed")
        return f"made of {call}"

    fake = SimpleNamespace(
        remote=lambda **_: lambda fn: Task(),
        wait=lambda calls, **_: (calls[:1], calls[1:]),
        get=get,
        exceptions=exceptions,
    )
    monkeypatch.setattr(pool, "session", lambda **_: contextlib.nullcontext(fake))
    results: Iterator[tuple[int, Any]] = pool.map_unordered(str, [1, 2], jobs=1, cpus=1)
    (_, first), second = results
    assert isinstance(first, RunError) and "out of memory" in str(first) and second == (2, "made of 2")


def test_a_worker_without_a_gpu_of_its_own_does_not_touch_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask makes a context of hundreds of MB there, also where the run is on the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", fail(AssertionError("a context is made")))
    assert Worker([], 1).ready().resident > 0


class Gpu:
    """A worker of its own with a GPU of 80 GiB, on which a client in a block takes 1 GiB and a process 2 GiB, and which
    is ``busy`` for so many seconds of each.
    """

    def __init__(self, room: int = 100, busy: float = 0.01) -> None:
        self.busy, self.room, self.sizes, self.cohorts, self.steps = busy, room, list[int](), list[int](), set[int]()
        self.block_size = self.largest = self.streams = 0

    def __call__(self, workers: Any, block_size: int, or_loop: bool) -> Gpu:
        self.block_size = block_size
        return self

    def run(self, federation: Any, meter: Any, call: Any) -> Any:
        """A round here, unless it does not fit."""
        self.sizes.append(self.block_size)
        self.cohorts.append(len(call.ids))
        self.steps |= set(federation.work.counts(federation.shards.sizes[call.ids]).tolist())
        if self.block_size > self.room:
            self.block_size //= 2
            raise BlocksLostError("full")
        self.largest = max(self.largest, self.block_size)
        return Blocks(self.block_size).run(federation, meter, call)

    def call(self, worker: int, method: str) -> str:
        """Its peak is read at the end, and reset at the beginning of every trial."""
        assert method == "device"
        return method

    def get(self, refs: Any) -> list[Usage]:
        """Its answer."""
        peak, self.largest = (2 + self.largest) * GIB, 0
        return [Usage(peak, 80 * GIB, 1.0, self.busy)]

    def close(self) -> None:
        """Nothing is left behind."""


def measured(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment, size: int, room: int = 100, busy: float = 0.01
) -> tuple[Gpu, float, int]:
    gpu, fed = Gpu(room, busy), prepare(experiment, 0).federation
    monkeypatch.setattr(hosts, "Workers", lambda ray, settings, gpus: gpu)
    monkeypatch.setattr(hosts, "RayActors", gpu)
    ids = experiment.participation.cohort(0, 1, fed.shards.n)
    share, most = host()._measured(SimpleNamespace(), experiment, fed, ids, size)  # type: ignore[arg-type]
    return gpu, share, most


EVERYBODY = replace(FEW, sampling=FixedSize(1.0))


def test_a_share_is_that_of_the_block_that_will_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, share, most = measured(monkeypatch, replace(EVERYBODY, local=LocalWork(epochs=3)), 8)
    assert (gpu.sizes, gpu.cohorts, gpu.steps, most) == ([8, 8], [8, 8], {hosts.TRIAL_STEPS}, 8)
    assert share == 1 / MOST_ON_A_GPU > share_of(10 * GIB, 80 * GIB)
    assert measured(monkeypatch, EVERYBODY, 8, busy=0.4)[1] == 1 / 2, "two have the GPU busy"
    assert measured(monkeypatch, EVERYBODY, 8, busy=0.0)[1] == 1, "nobody can tell"


def test_a_share_is_that_of_a_block_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, share, most = measured(monkeypatch, EVERYBODY, 25, room=6)
    assert (gpu.sizes, most, share) == ([25, 12, 6, 6], 6, 1 / MOST_ON_A_GPU)


def test_a_share_with_a_topology_is_that_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm: Algorithm[Any] = DFedAvg()
    gpu, share, _ = measured(monkeypatch, replace(FEW, algorithm=algorithm, topology=Static(Ring())), 40)
    assert set(gpu.cohorts) == {40} and share == share_of(42 * GIB, 80 * GIB) == 1


class Started:
    """Workers that were started, with the share of a GPU that each got."""

    facts = (SimpleNamespace(resident=GIB),)
    threads = 1

    def __init__(self, ray: Any, settings: Ray, gpus: float) -> None:
        self.ray, self.settings, self.gpus = ray, settings, gpus

    def __len__(self) -> int:
        return self.settings.actors or round(2 / self.gpus)


def connected(
    monkeypatch: pytest.MonkeyPatch, settings: Ray, plan: ActorPlan, before: Any = None, directory: Any = None,
    say: Any = None, **execution: Any,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Backend and record of a run on a machine with two GPUs."""
    made, fed = RayHost(settings, progress=False), prepare(FEW, 0).federation
    cuda: Any = SimpleNamespace(device=torch.device("cuda"), d=fed.model.d, dtype=fed.model.dtype)
    made._ray = SimpleNamespace(cluster_resources=lambda: {"GPU": 2.0})  # type: ignore[assignment]
    monkeypatch.setattr(hosts, "Workers", Started)
    monkeypatch.setattr(made, "_plan", lambda *_: plan)
    monkeypatch.setattr(made, "_measured", lambda *_: (1 / 3, 5))
    given = SimpleNamespace(**{"client_threads": None, "block_size": 0, **execution})
    experiment: Any = SimpleNamespace(participation=EVERYBODY.participation, execution=given)
    prepared: Any = SimpleNamespace(federation=replace(fed, model=cuda))
    made.say = say
    found, record = made.connect(experiment, prepared, directory, before)
    return found.backend, record


GRAPHS, EAGER = ActorPlan(0, 4), ActorPlan(10, dropped={"graphed": "it reads a number"})


@pytest.mark.parametrize(
    ("settings", "plan", "expected"),
    [
        (Ray(), GRAPHS, (1.0, 0, 4, 2)), (Ray(actors=1), GRAPHS, (1.0, 0, 4, 1)),
        (Ray(actors=4), GRAPHS, (0.5, 0, 4, 4)), (Ray(), ActorPlan(25), (1.0, 20, 0, 2)),
        (Ray(), EAGER, (1 / 3, 5, 0, 6)), (Ray(actors=2), EAGER, (1.0, 10, 0, 2)),
    ],
)  # fmt: skip
def test_an_actor_has_a_gpu_unless_more_are_asked_for_or_steps_are_no_graphs(
    settings: Ray, plan: ActorPlan, expected: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    share, size, streams, actors = expected
    backend, record = connected(monkeypatch, settings, plan)
    assert (backend.workers.gpus, backend.block_size, backend.streams, len(backend.workers)) == expected
    told = {"client_threads": streams} if streams else {}
    dropped = {"dropped": plan.dropped} if plan.dropped else {}
    assert record == {"backend": "ray", "block_size": size, "actors": actors, **told, **dropped}
    again, _ = connected(monkeypatch, settings, ActorPlan(99), before=record)
    assert (again.workers.gpus, again.block_size, again.streams) == (share, size, streams)


def test_clients_at_the_same_time_and_blocks_are_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    of_three, record = connected(monkeypatch, Ray(), ActorPlan(99), client_threads=3)
    assert (of_three.block_size, of_three.streams, record["client_threads"]) == (0, 3, 3)
    blocks, _ = connected(monkeypatch, Ray(), GRAPHS, block_size=7)
    assert (blocks.block_size, blocks.streams) == (7, 0)
    threads = {"backend": "loop", "client_threads": 2}     # of a CPU
    assert connected(monkeypatch, Ray(), GRAPHS, before=threads)[0].streams == 0


def test_a_step_that_is_no_graph_is_said_once_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    none, said, noted = np.zeros(0, np.int64), list[str](), list[Any]()
    manifest = SimpleNamespace(manifest={"backend": {}}, update_manifest=lambda **change: noted.append(change))
    backend, record = connected(monkeypatch, Ray(), GRAPHS, directory=manifest, say=said.append)
    report = Report(none, none, none, none, None, None, None, eager=(("step", "it reads a number"),))
    monkeypatch.setattr(Started, "get", lambda *_: [report, report], raising=False)
    backend.reports(SimpleNamespace(calls=[["a"], ["b"]], name="Made.client 0"), 1)
    assert said == ["step is no CUDA graph, and its steps are launched one by one: it reads a number"]
    assert noted == [{"backend": {"0": record}}] and record["eager"] == {"step": "it reads a number"}


def test_streams_are_halved_when_a_device_is_full() -> None:
    backend = RayActors(SimpleNamespace(ray=None), 0, graphs=Graphed(streams=4))  # type: ignore[arg-type]
    none = np.zeros(0, np.int64)
    full = Report(none, none, none, none, None, None, None, ClientFailure([], "OutOfMemoryError", "", full=True))
    for left in (2, 1):
        with pytest.raises(BlocksLostError, match=f"{left} clients at a time from here on"):
            backend._check([full], "Made.client 0", 1)
        assert backend.streams == left
    with pytest.raises(RunError, match="no memory for a single client"):
        backend._check([full], "Made.client 0", 1)
