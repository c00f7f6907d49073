"""Controller host with clients in Ray actors: session, execution plan, and retries of lost rounds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch

from fedsim.algorithm import Algorithm
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.ahead import Ahead
from fedsim.backends.ray.object_store import ObjectStore
from fedsim.backends.ray.protocol import Usage
from fedsim.backends.ray.ray_backend import RayActors, score
from fedsim.backends.ray.session import session
from fedsim.clients import cohort
from fedsim.controller.choose import choose
from fedsim.controller.foresight import Foresight
from fedsim.controller.host import Host
from fedsim.controller.prepare import Prepared
from fedsim.controller.scoring import Scores
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.graphed import Graphed
from fedsim.engine.machine import MOST_SHARED, cores
from fedsim.errors import BlockError, BlocksLostError, ClientError, ConfigError, RoundLostError, RunError, many
from fedsim.experiment.execution import Ray
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory
from fedsim.tree import Samples
from fedsim.values import Far, Vector

T = TypeVar("T")

MOST_ATTEMPTS = 3
"""Attempts at a round before the run fails."""
TRIAL_STEPS = 2
"""Local steps of the rounds that measure GPU memory."""
MOST_ON_A_GPU = 4
"""Actors by default, for steps that are launched one by one and leave the GPU idle meanwhile."""
CONTEXT = 600 * 2**20
"""Bytes of GPU memory that the CUDA context of a process takes."""
RESERVE = 1.2
"""Safety factor on measured GPU memory, as clients differ."""


class ActorPlan(NamedTuple):
    """How clients run in the actors.

    Attributes:
        size: clients in a block; 0 for one by one.
        streams: clients at the same time on a GPU, with local steps as CUDA graphs; 0 without.
        dropped: why steps cannot be graphs, by what was tried.
    """

    size: int
    streams: int = 0
    dropped: Mapping[str, str] = {}

    @classmethod
    def of(cls, chosen: Mapping[str, Any]) -> ActorPlan:
        """The plan in a record of a backend."""
        least = {"ray": 0, "graphed": 1}.get(chosen["backend"])   # others have threads of a CPU
        streams = 0 if least is None else chosen.get("client_threads", least)
        return cls(int(chosen.get("block_size", 0)), streams, chosen.get("dropped", {}))

    @property
    def recorded(self) -> dict[str, Any]:
        """The record, without what is not so."""
        streams = {"client_threads": self.streams} if self.streams else {}
        return {"block_size": self.size, **streams, **({"dropped": dict(self.dropped)} if self.dropped else {})}


class RayHost(Host):
    """Clients in Ray actors.

    Args:
        settings: number of actors and resources of each.
        progress: print the execution plan.
        workers: of an existing session, which is kept; by default a session is started, and ended with the run.
    """

    def __init__(self, settings: Ray, progress: bool = True, workers: Workers | None = None) -> None:
        super().__init__()
        self.settings, self.progress = settings, progress
        self._stack = contextlib.ExitStack()
        self._workers, self._given = workers, workers
        self._ray: ModuleType | None = None if workers is None else workers.ray
        self._chosen: dict[str, Any] = {}                  # written into checkpoints by the controller
        self._most: int | None = None                      # block size for which the GPU share was measured

    def __enter__(self) -> Self:
        if self._given is not None:
            return self
        s = self.settings
        wanted = math.ceil((s.actors or 1) * s.cpus)       # the user may ask for more processors than exist
        gpus = (s.actors or 1) * (s.gpus or 0)
        if s.address is None and wanted > MOST_SHARED * cores():
            raise ConfigError(
                f"{s.actors or 1} actors with {s.cpus:g} processors each are far more than this machine's {cores()}"
                f" processors: leave out --ray.actors, which gives {many(max(1, int(cores() / s.cpus)), 'actor')}"
            )
        if s.address is None and gpus > torch.cuda.device_count():
            raise ConfigError(
                f"{s.actors or 1} actors with {s.gpus:g} of a GPU each need {gpus:g} GPUs; this machine has"
                f" {torch.cuda.device_count()}: lower --ray.actors or --ray.gpus"
            )
        self._ray = self._stack.enter_context(
            session(
                address=s.address,
                cpus=max(cores(), wanted),
                gpus=torch.cuda.device_count(),
                object_store_bytes=s.object_store_memory,
                log_to_driver=s.log_to_driver,
            )
        )
        if s.gpus is not None or not torch.cuda.is_available():
            self._workers = Workers(self._ray, s, s.gpus or 0.0)   # start while data and model are prepared
        return self

    def __exit__(self, *_: object) -> None:
        self._workers = self._given
        self._stack.close()

    def connect(
        self, experiment: Experiment, prepared: Prepared, directory: RunDirectory, before: dict[str, Any] | None
    ) -> tuple[Federation, dict[str, Any]]:
        """See ``Host``."""
        fed, ray = prepared.federation, self._ray
        assert ray is not None, "the host is not entered"
        ids = experiment.participation.cohort(fed.seed, 1, fed.shards.n)
        execution = experiment.execution
        if before is not None:
            plan = ActorPlan.of(before)
        elif execution.client_threads or execution.block_size:
            plan = ActorPlan(execution.block_size, 0 if execution.block_size else execution.client_threads or 0)
        else:
            plan = self._plan(experiment, fed, ids)
        if self._workers is None:
            self._workers = self._start(ray, experiment, fed, ids, plan)
        if before is None and not execution.block_size:    # every worker is to have a block
            plan = plan._replace(size=min(plan.size, max(1, math.ceil(len(ids) / len(self._workers)))))
        if self._most is not None:
            plan = plan._replace(size=min(plan.size, self._most))
        self._chosen = {"backend": "ray", **plan.recorded, "actors": len(self._workers)}
        graphs = None
        if plan.streams:
            eager: dict[str, str] = {}
            graphs = Graphed(streams=plan.streams, eager=eager, say=partial(self._note, directory, fed, eager))
        backend = RayActors(self._workers, plan.size, or_loop=not execution.block_size, graphs=graphs)
        connected = replace(fed, backend=backend, memory=ObjectStore(ray))
        self._report_plan(fed, len(ids), plan, max(fact.resident for fact in self._workers.facts))
        return connected, self._chosen

    def _start(
        self, ray: ModuleType, experiment: Experiment, fed: Federation, ids: np.ndarray, plan: ActorPlan
    ) -> Workers:
        """Start the actors: by default one for each GPU, more where they are asked for, or where steps that cannot be
        graphs leave it idle.
        """
        share = self.settings.gpus
        if share is None:
            share = 0.0
            if fed.model.device.type == "cuda":
                gpus = max(1, int(ray.cluster_resources().get("GPU", 0)))
                share = 1 / math.ceil((self.settings.actors or 1) / gpus)
                if plan.dropped and self.settings.actors is None:
                    share, self._most = self._measured(ray, experiment, fed, ids, plan.size)
        return Workers(ray, self.settings, share)

    def _measured(
        self, ray: ModuleType, experiment: Experiment, fed: Federation, ids: np.ndarray, size: int
    ) -> tuple[float, int]:
        """Measure the GPU share of an actor by memory and time, and the block size that fits it, on an actor with a
        whole GPU: two rounds of the most expensive block, or of all nodes with a topology, since a round of a few may
        disconnect it. The second round includes the memories kept in the first, and nothing that is done once.
        """
        one = Workers(ray, replace(self.settings, actors=1, gpus=1), 1.0)
        backend = RayActors(one, size, or_loop=not experiment.execution.block_size)
        trial = replace(fed, work=replace(fed.work, epochs=1, steps=TRIAL_STEPS), backend=backend)
        some = ids if experiment.topology else ids[trial.work.order(fed.shards.sizes[ids])[: size or 1]]

        def rounds() -> list[Usage]:
            one.get(one.call(0, "device"))                 # forgets a failed trial
            state, used = experiment.method.init(fed.model.shared(), cohort(trial, 0, some)), list[Usage]()
            for round in (1, 2):
                state = experiment.method.round(state, cohort(trial, round, some))
                used += one.get(one.call(0, "device"))
            return used

        first, second = self.attempt("the trial of a GPU", trial, Meter(fed), rounds)
        one.close()
        fits = share_of(max(first.peak, second.peak), second.total)
        return max(fits, share_by_time(second.seconds, second.busy)), backend.block_size

    def _plan(self, experiment: Experiment, fed: Federation, ids: np.ndarray) -> ActorPlan:
        """What is fastest in this process."""
        threads = None if fed.model.device.type == "cuda" else 0
        return ActorPlan.of(choose(fed, experiment.method, ids, threads=threads, kernels=False, say=self.say))

    def _note(self, directory: RunDirectory, fed: Federation, eager: dict[str, str], text: str) -> None:
        """Say and record that a step turned out to be no graph."""
        self.say(text)
        self._chosen["eager"] = eager
        directory.update_manifest(backend={**directory.manifest["backend"], str(fed.seed): self._chosen})

    def _report_plan(self, fed: Federation, cohort: int, plan: ActorPlan, resident: int) -> None:
        if not self.progress or self._workers is None:
            return
        workers = self._workers
        vector = fed.model.d * fed.model.dtype.itemsize
        each = math.ceil(cohort / len(workers))
        memory = resident + vector * (each + 4 * max(1, plan.size, plan.streams))
        machines = sum(node["Alive"] for node in workers.ray.nodes())
        gpu = f", {workers.gpus:g} of a GPU" if workers.gpus else ""
        graphs = f"local steps as graphs of {many(plan.streams, 'client')} at a time"
        replayed = " with local steps as graphs" if plan.streams else ""
        alone = graphs if plan.streams else "one client after the other"
        self.say(
            f"ray: {many(len(workers), 'actor')} on {many(machines, 'machine')} x {many(each, 'client')} a round,"
            f" {many(workers.threads, 'thread')}{gpu} and about {memory / 2**30:.1f} GiB each;"
            f" {f'blocks of {plan.size}{replayed}' if plan.size else alone}"
        )

    def init(
        self, algorithm: Algorithm[Any], x: Vector, federation: Federation, meter: Meter, template: bool
    ) -> Any:
        """See ``Host``. Retried when a worker dies."""
        begin = partial(super().init, algorithm, x, federation, meter, template)
        return self.attempt("initialisation", federation, meter, begin)

    def round(
        self, algorithm: Algorithm[Any], state: Any, federation: Federation, meter: Meter, round: int, ids: np.ndarray
    ) -> Any:
        """See ``Host``. A lost round is retried from the previous state; a round in which a client function raised is
        retried as ``on_error`` specifies.

        Raises:
            ClientError: a client function raised.
            RunError: the round was lost in every attempt.
        """
        before, chosen = meter.snapshot(), ids
        for attempt in count(1):
            clients = cohort(federation, round, ids, meter)
            try:
                new = self.attempt(f"round {round}", federation, meter, partial(algorithm.round, state, clients))
                break
            except (ClientError, BlockError) as error:     # the latter also where a client fails now and then
                ids = self._without(error, ids, attempt)
                self.say(f"round {round} again: {str(error).splitlines()[0]}; policy: {self.settings.on_error}")
                meter.restore(before)
        self.skipped = np.setdiff1d(chosen, ids).tolist()
        return new

    def score(self, prepared: Prepared, x: Vector | Far, inputs: Samples, targets: Samples) -> Scores:
        """See ``Host``; evaluated by the workers.

        Raises:
            RunError: workers died in every attempt.
        """
        assert self._workers is not None, "the host is not connected"
        workers = self._workers

        def scores() -> Scores:
            workers.settle(prepared.federation)
            classes, keep = bool(prepared.dataset.classes), prepared.keeps_outputs
            return score(workers, x, inputs, targets, classes, keep)

        return self.attempt("evaluation", prepared.federation, Meter(prepared.federation), scores)

    def ahead(self, federation: Federation, foresight: Foresight) -> Federation:
        """See ``Host``."""
        backend = federation.backend
        if not self.foresees or not isinstance(backend, RayActors):
            return federation
        return replace(federation, backend=Ahead(federation, backend, foresight, self))

    def attempt(self, what: str, federation: Federation, meter: Meter, do: Callable[[], T]) -> T:
        """See ``Host``. Retried a limited number of times when workers die, and whenever blocks of clients are made
        smaller, which ends at the latest when clients run one by one.

        Raises:
            RunError: workers died in every attempt.
        """
        before, lost = meter.snapshot(), 0
        while True:
            try:
                return do()
            except RoundLostError as error:
                if isinstance(error, BlocksLostError):
                    backend: Any = federation.backend
                    streams = {"client_threads": backend.streams} if backend.streams else {}
                    self._chosen |= {"block_size": backend.block_size, **streams, "reason": str(error)}
                elif (lost := lost + 1) >= MOST_ATTEMPTS:
                    raise RunError(f"{what} was lost {lost} times; the last time: {error}") from error
                self.say(f"{what} again: {error}")
                meter.restore(before)

    def _without(self, error: ClientError | BlockError, ids: np.ndarray, attempt: int) -> np.ndarray:
        """Clients for the next attempt at a round: without the failed ones, or all of them, as ``on_error`` says."""
        left = ids[~np.isin(ids, getattr(error, "ids", ()))]
        if self.settings.on_error == "skip" and len(left) < len(ids):
            if len(left):
                return left
            self.say("every client of the round raised, so that skipping them leaves none; the run stops")
        if self.settings.on_error == "retry" and attempt < MOST_ATTEMPTS:
            return ids
        raise error


def share_of(peak: int, total: int) -> float:
    """Share of a GPU with ``total`` bytes for a process whose tensors need ``peak`` bytes.

    Raises:
        ConfigError: one process needs more than the GPU has.
    """
    needed = RESERVE * peak + CONTEXT
    if needed > total:
        raise ConfigError(
            f"a block of clients needs {needed / 2**30:.1f} GiB on a GPU that has {total / 2**30:.1f} GiB; lower"
            " --block_size or --local.batch_size"
        )
    return 1 / math.floor(total / needed)


def share_by_time(seconds: float, busy: float) -> float:
    """Share of a GPU for a process whose clients take ``seconds`` and keep it ``busy`` for some of these: as many share
    it as it takes to have it busy, `MOST_ON_A_GPU` at most; a whole one where nobody can tell.
    """
    return 1 / min(MOST_ON_A_GPU, max(1, math.floor(seconds / busy))) if busy else 1.0
