"""The controller's host whose clients are in Ray's actors: session, plan, and rounds that are done again."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.ray.actors import RayActors
from fedsim.backends.ray.scoring import score
from fedsim.backends.ray.session import session
from fedsim.backends.ray.settings import Ray
from fedsim.backends.ray.store import Store
from fedsim.backends.ray.workers import Workers
from fedsim.clients import Federation
from fedsim.errors import ClientError, ConfigError, RoundLostError, RunError
from fedsim.evaluate import Scores
from fedsim.experiment import Experiment
from fedsim.host import Host
from fedsim.pool import cores
from fedsim.record import RunDirectory
from fedsim.setup import Prepared
from fedsim.tree import Far
from fedsim.tune import choose
from fedsim.types import Algorithm, Vector

MOST_ATTEMPTS = 3
"""Times that a round is tried before the run gives up."""
TRIAL_STEPS = 2
"""Local steps of the round that measures a device's memory."""
CONTEXT = 600 * 2**20
"""Bytes that a process has in use on a GPU before it computes anything."""
RESERVE = 1.2
"""Memory is given out so many times over what was measured, as clients differ."""


class RayHost(Host):
    """Clients in Ray's actors.

    Args:
        settings: how many actors, and what each gets.
        progress: tell a person the plan.
        workers: of a session that is there already and stays; by default one is made, and ended with the run.
    """

    def __init__(self, settings: Ray, progress: bool = True, workers: Workers | None = None) -> None:
        super().__init__()
        self.settings, self.progress = settings, progress
        self._stack = contextlib.ExitStack()
        self._workers, self._given = workers, workers
        self._ray: ModuleType | None = None if workers is None else workers.ray
        self._chosen: dict[str, Any] = {}                  # what the controller writes into checkpoints

    def __enter__(self) -> Self:
        if self._given is not None:
            return self
        s = self.settings
        wanted = math.ceil((s.actors or 1) * s.cpus)       # more than there are is the user's wish
        gpus = (s.actors or 1) * (s.gpus or 0)
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
            self._workers = Workers(self._ray, s, s.gpus or 0.0)   # they come up while data and model are prepared
        return self

    def __exit__(self, *_: object) -> None:
        self._workers = self._given
        self._stack.close()

    def connect(
        self, experiment: Experiment, prepared: Prepared, directory: RunDirectory, before: dict[str, Any] | None
    ) -> dict[str, Any]:
        """See ``Host``."""
        fed, ray = prepared.federation, self._ray
        assert ray is not None, "the host is not entered"
        ids = experiment.participation.cohort(fed.seed, 1, fed.shards.n)
        if self._workers is None:
            self._workers = self._start(ray, experiment, fed, ids)
        if before is not None:
            size = int(before.get("block_size", 0))
        elif experiment.block_size:
            size = experiment.block_size
        else:
            size = self._block_size(experiment, fed, ids, len(self._workers))
        fed.backend = RayActors(self._workers, size)
        fed.memory = Store(ray)
        self._tell_plan(fed, len(ids), size, max(fact.resident for fact in self._workers.facts))
        self._chosen = {"backend": "ray", "block_size": size, "actors": len(self._workers)}
        return self._chosen

    def _start(self, ray: ModuleType, experiment: Experiment, fed: Federation, ids: np.ndarray) -> Workers:
        share = self.settings.gpus
        if share is None:
            share = 0.0
            if fed.model.device.type == "cuda":
                share = self._measured_share(ray, experiment, fed, ids)
        return Workers(ray, self.settings, share)

    def _measured_share(self, ray: ModuleType, experiment: Experiment, fed: Federation, ids: np.ndarray) -> float:
        """Share of a GPU for each actor, by a trial of one block on one actor that has a whole one."""
        one = Workers(ray, replace(self.settings, actors=1, gpus=1), 1.0)
        size = experiment.block_size or 1
        backend = RayActors(one, size)
        trial = replace(fed, work=replace(fed.work, epochs=1, steps=TRIAL_STEPS), backend=backend)
        some = ids[trial.work.order(fed.shards.sizes[ids])[:size]]
        if experiment.topology is None:                    # a round of a few nodes may break a topology
            state = experiment.method.init(fed.model.vector(), trial.cohort(0, some))
            experiment.method.round(state, trial.cohort(1, some))
        total = one.facts[0].device_bytes
        one.close()
        return share_of(backend.peak, total)

    def _block_size(self, experiment: Experiment, fed: Federation, ids: np.ndarray, workers: int) -> int:
        """As measured in this process, but small enough for every worker to have a block."""
        if experiment.method is None or fed.model.device.type == "cuda":
            return max(1, math.ceil(len(ids) / workers))
        chosen = choose(fed, experiment.method, ids)
        size = int(chosen.get("block_size", 0))
        return size and min(size, max(1, math.ceil(len(ids) / workers)))

    def _tell_plan(self, fed: Federation, cohort: int, size: int, resident: int) -> None:
        if not self.progress or self._workers is None:
            return
        workers = self._workers
        vector = fed.model.d * fed.model.dtype.itemsize
        each = math.ceil(cohort / len(workers))
        memory = resident + vector * (each + 4 * max(1, size))
        machines = sum(node["Alive"] for node in workers.ray.nodes())
        gpu = f", {workers.gpus:g} of a GPU" if workers.gpus else ""
        self.say(
            f"ray: {_many(len(workers), 'actor')} on {_many(machines, 'machine')} x {_many(each, 'client')} a round,"
            f" {_many(workers.threads, 'thread')}{gpu} and about {memory / 2**30:.1f} GiB each;"
            f" {f'blocks of {size}' if size else 'one client after the other'}"
        )

    def round(self, algorithm: Algorithm[Any], state: Any, federation: Federation, round: int, ids: np.ndarray) -> Any:
        """See ``Host``. A round that is lost is done again from the state before it; so is one in which a client's code
        raised, as the settings say.

        Raises:
            ClientError: a client's code raised.
            RunError: the round was lost again and again.
        """
        before = {name: tensor.clone() for name, tensor in federation.ledger.state().items()}
        attempt, cohort = 0, ids
        while True:
            attempt += 1
            try:
                new = algorithm.round(state, federation.cohort(round, ids))
                self.skipped = np.setdiff1d(cohort, ids).tolist()
                return new
            except RoundLostError as lost:
                if attempt == MOST_ATTEMPTS:
                    raise RunError(f"round {round} was lost {attempt} times; the last time: {lost}") from lost
                self._chosen["block_size"] = federation.backend.block_size   # type: ignore[attr-defined]
                self.say(f"round {round} again: {lost}")
            except ClientError as error:
                ids = self._without(error, ids, attempt)
                self.say(f"round {round} again: {str(error).splitlines()[0]}; policy: {self.settings.on_error}")
            federation.ledger.restore(before)

    def score(self, prepared: Prepared, x: Vector | Far, inputs: Tensor, targets: Tensor) -> Scores:
        """See ``Host``; the workers do it.

        Raises:
            RunError: workers died again and again.
        """
        assert self._workers is not None, "the host is not connected"
        attempt = 0
        while True:
            attempt += 1
            self._workers.settle(prepared.federation)
            try:
                return score(self._workers, x, inputs, targets, bool(prepared.dataset.classes))
            except RoundLostError as lost:
                if attempt == MOST_ATTEMPTS:
                    raise RunError(f"an evaluation was lost {attempt} times; the last time: {lost}") from lost
                self.say(f"evaluation again: {lost}")

    def _without(self, error: ClientError, ids: np.ndarray, attempt: int) -> np.ndarray:
        """With whom a round is done again."""
        left = ids[~np.isin(ids, error.ids)] if self.settings.on_error == "skip" else ids
        if self.settings.on_error == "stop" or not len(left) or attempt >= max(MOST_ATTEMPTS, len(ids)):
            raise error
        return left


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def share_of(peak: int, total: int) -> float:
    """Share of a GPU with ``total`` bytes for processes that need ``peak`` bytes for their tensors.

    Raises:
        ConfigError: one process needs more than there is.
    """
    needed = RESERVE * peak + CONTEXT
    if needed > total:
        raise ConfigError(
            f"a block of clients needs {needed / 2**30:.1f} GiB on a GPU that has {total / 2**30:.1f} GiB; lower"
            " --block_size or --local.batch_size"
        )
    return 1 / math.floor(total / needed)
