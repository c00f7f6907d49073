"""Controller host with clients in Ray actors: session, execution plan, and retries of lost rounds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any, Self, TypeVar

import numpy as np
import torch

from fedsim.algorithm import Algorithm
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.ahead import Ahead
from fedsim.backends.ray.object_store import ObjectStore
from fedsim.backends.ray.ray_backend import RayActors, score
from fedsim.backends.ray.session import session
from fedsim.clients import cohort
from fedsim.controller.choose import choose
from fedsim.controller.evaluate import Scores
from fedsim.controller.foresight import Foresight
from fedsim.controller.host import Host
from fedsim.controller.prepare import Prepared
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.machine import cores
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
MOST_TOGETHER = 25
"""Default block size on a GPU, both for the measurement and for the run."""
CONTEXT = 600 * 2**20
"""Bytes of GPU memory that the CUDA context of a process takes."""
MOST_SHARED = 8
"""Actors per processor in a local session; more would only compete for memory."""
RESERVE = 1.2
"""Safety factor on measured GPU memory, as clients differ."""


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
        given = experiment.execution.block_size or None
        if before is not None:
            given = int(before.get("block_size", 0))
        if self._workers is None:
            self._workers = self._start(ray, experiment, fed, ids, given)
        size = self._block_size(experiment, fed, ids, len(self._workers)) if given is None else given
        if self._most is not None:
            size = min(size, self._most)
        backend = RayActors(self._workers, size, or_loop=not experiment.execution.block_size)
        connected = replace(fed, backend=backend, memory=ObjectStore(ray))
        self._report_plan(fed, len(ids), size, max(fact.resident for fact in self._workers.facts))
        self._chosen = {"backend": "ray", "block_size": size, "actors": len(self._workers)}
        return connected, self._chosen

    def _start(
        self, ray: ModuleType, experiment: Experiment, fed: Federation, ids: np.ndarray, given: int | None
    ) -> Workers:
        share = self.settings.gpus
        if share is None:
            share = 0.0
            if fed.model.device.type == "cuda":
                size = min(MOST_TOGETHER, len(ids)) if given is None else given
                share, self._most = self._measured(ray, experiment, fed, ids, size)
        return Workers(ray, self.settings, share)

    def _measured(
        self, ray: ModuleType, experiment: Experiment, fed: Federation, ids: np.ndarray, size: int
    ) -> tuple[float, int]:
        """Measure the GPU share of an actor, and the block size that fits it, on an actor with a whole GPU: two rounds
        of the most expensive block, or of all nodes with a topology, since a round of a few may disconnect it. The
        second round includes the memories kept in the first.
        """
        one = Workers(ray, replace(self.settings, actors=1, gpus=1), 1.0)
        backend = RayActors(one, size, or_loop=not experiment.execution.block_size)
        trial = replace(fed, work=replace(fed.work, epochs=1, steps=TRIAL_STEPS), backend=backend)
        some = ids if experiment.topology else ids[trial.work.order(fed.shards.sizes[ids])[: size or 1]]

        def rounds() -> None:
            one.get(one.call(0, "device"))                 # resets the peak of a failed trial
            state = experiment.method.init(fed.model.shared(), cohort(trial, 0, some))
            for round in (1, 2):
                state = experiment.method.round(state, cohort(trial, round, some))

        self._repeated("the trial of a GPU", trial, Meter(fed), rounds)
        peak, total = one.get(one.call(0, "device"))[0]
        one.close()
        return share_of(peak, total), backend.block_size

    def _block_size(self, experiment: Experiment, fed: Federation, ids: np.ndarray, workers: int) -> int:
        """Block size as chosen in this process, but small enough to give every worker a block."""
        size = MOST_TOGETHER
        if fed.model.device.type != "cuda":
            size = int(choose(fed, experiment.method, ids, threads=0, kernels=False, say=self.say).get("block_size", 0))
        return min(size, max(1, math.ceil(len(ids) / workers)))

    def _report_plan(self, fed: Federation, cohort: int, size: int, resident: int) -> None:
        if not self.progress or self._workers is None:
            return
        workers = self._workers
        vector = fed.model.d * fed.model.dtype.itemsize
        each = math.ceil(cohort / len(workers))
        memory = resident + vector * (each + 4 * max(1, size))
        machines = sum(node["Alive"] for node in workers.ray.nodes())
        gpu = f", {workers.gpus:g} of a GPU" if workers.gpus else ""
        self.say(
            f"ray: {many(len(workers), 'actor')} on {many(machines, 'machine')} x {many(each, 'client')} a round,"
            f" {many(workers.threads, 'thread')}{gpu} and about {memory / 2**30:.1f} GiB each;"
            f" {f'blocks of {size}' if size else 'one client after the other'}"
        )

    def init(
        self, algorithm: Algorithm[Any], x: Vector, federation: Federation, meter: Meter, template: bool
    ) -> Any:
        """See ``Host``. Retried when a worker dies."""
        begin = partial(super().init, algorithm, x, federation, meter, template)
        return self._repeated("initialisation", federation, meter, begin)

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
                new = self._repeated(f"round {round}", federation, meter, partial(algorithm.round, state, clients))
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

        return self._repeated("evaluation", prepared.federation, Meter(prepared.federation), scores)

    def attempt(self, what: str, federation: Federation, meter: Meter, do: Callable[[], T]) -> T:
        """See ``Host``.

        Raises:
            RunError: workers died in every attempt.
        """
        return self._repeated(what, federation, meter, do)

    def ahead(self, federation: Federation, foresight: Foresight) -> Federation:
        """See ``Host``."""
        backend = federation.backend
        if not self.foresees or not isinstance(backend, RayActors):
            return federation
        return replace(federation, backend=Ahead(federation, backend, foresight, self))

    def _repeated(self, what: str, federation: Federation, meter: Meter, do: Callable[[], T]) -> T:
        """Return ``do()``, retried a limited number of times when workers die, and whenever blocks of clients are made
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
                    size = federation.backend.block_size   # type: ignore[attr-defined]
                    self._chosen |= {"block_size": size, "reason": str(error)}
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
