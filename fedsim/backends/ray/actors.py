"""Workers of a session: actors with the federation and its client functions, restarted when they die."""

from __future__ import annotations

import copy
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.nn import Module

from fedsim.backends.ray.actor import MOST_FUNCTIONS, Worker
from fedsim.backends.ray.object_store import to_array
from fedsim.backends.ray.protocol import Facts, WorkerSetup
from fedsim.engine.federation import Federation
from fedsim.engine.unpicklable import refused
from fedsim.errors import ConfigError, RoundLostError, RunError, StateLostError
from fedsim.experiment.execution import Ray
from fedsim.tree import Samples, flat, structure

PATIENCE = 180.0
"""Seconds an actor may take to start."""


class Workers:
    """Numbered actors.

    Args:
        ray: the Ray module, connected.
        settings: number of actors and resources of each.
        gpus: share of a GPU for each.
    """

    def __init__(self, ray: ModuleType, settings: Ray, gpus: float = 0.0) -> None:
        self.ray, self.settings, self.gpus = ray, settings, gpus
        self.threads = settings.threads or max(1, int(settings.cpus))
        self._dropped: dict[int, list[int]] = defaultdict(list)          # by worker: tokens of released messages
        self._taught: dict[Callable[..., Any], tuple[str, bytes]] = {}   # its name at the workers, and its pickle
        self._numbers = count()                            # of client functions
        self._site: tuple[Any, ...] | None = None          # parts of the current federation, by identity
        self._settled: tuple[Any, ...] = ()                # arguments of `Worker.settle`
        self._shared: list[tuple[Tensor, Any]] = []        # samples in the object store
        self._vector = 0                                   # bytes of a model vector
        self._suspect = False
        self._actors: list[Any] = [self._start() for _ in range(self._count())]   # they start in the background

    def __len__(self) -> int:
        return len(self._actors)

    @cached_property
    def facts(self) -> list[Facts]:
        """Process facts of every worker after its start.

        Raises:
            RunError: a worker does not start.
        """
        refs = [actor.ready.remote() for actor in self._actors]
        _, missing = self.ray.wait(refs, num_returns=len(refs), timeout=PATIENCE)
        if missing:
            raise _late(len(missing), len(refs))
        found: list[Facts] = self.get(refs)
        return found

    def _count(self) -> int:
        """Number of actors to start."""
        there, s, room = self.ray.cluster_resources(), self.settings, self._room()
        wanted = s.actors or max(1, room)
        if wanted > room:
            has = f"{there.get('CPU', 0):g} processors and {there.get('GPU', 0):g} GPUs"
            raise ConfigError(
                f"{wanted} actors with {s.cpus:g} processors and {self.gpus:g} of a GPU each do not fit: Ray has {has};"
                " lower --ray.actors, --ray.cpus or --ray.gpus"
            )
        return wanted

    def _room(self) -> int:
        """Number of actors for which the cluster has processors and GPUs."""
        there = self.ray.cluster_resources()
        room = there.get("CPU", 0) / self.settings.cpus
        return int(1e-9 + (min(room, there.get("GPU", 0) / self.gpus) if self.gpus else room))

    def _start(self) -> Any:
        s = self.settings
        options = {"num_cpus": s.cpus, "num_gpus": self.gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        paths = [path for path in sys.path if path]
        return self.ray.remote(Worker).options(**options).remote(paths, self.threads)

    def _started(self, count: int) -> list[Any]:
        """Start actors and wait for them; return fewer if the cluster loses a machine meanwhile.

        Raises:
            RunError: an actor does not start.
        """
        waiting = {actor.ready.remote(): actor for actor in (self._start() for _ in range(count))}
        up: list[Any] = []
        end = time.monotonic() + PATIENCE
        while waiting:
            done, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=1.0)
            up += [waiting.pop(ref) for ref in done]
            surplus = len(self._actors) + len(up) + len(waiting) - self._room()
            for ref in list(waiting)[: max(0, surplus)]:
                self.ray.kill(waiting.pop(ref))
            if waiting and time.monotonic() > end:
                raise _late(len(waiting), count)
        return up

    def call(self, worker: int, method: str, *arguments: Any, results: int = 1) -> list[Any]:
        """Call a method of a worker; return references to its results."""
        refs = getattr(self._actors[worker], method).options(num_returns=results).remote(*arguments)
        return [refs] if results == 1 else list(refs)

    def get(self, refs: Sequence[Any]) -> list[Any]:
        """Fetch results.

        Raises:
            RoundLostError: a worker died.
            StateLostError: a client's memory is lost.
            RunError: the object store or the disk is full.
        """
        wrong = self.ray.exceptions
        try:
            found: list[Any] = self.ray.get(list(refs))
            return found
        except self._deaths as error:
            self._suspect = True
            raise RoundLostError(f"a worker died: {_line(error)}") from error
        except wrong.ObjectLostError as error:
            self._suspect = True
            raise StateLostError(f"client memories are lost with the machine that held them: {_line(error)}") from error
        except (wrong.ObjectStoreFullError, wrong.OutOfDiskError) as error:
            raise RunError(
                f"the object store or its disk is full: {_line(error)}; give --ray.object_store_memory more bytes, or"
                " TMPDIR a folder on a disk with more room"
            ) from error

    @property
    def _deaths(self) -> tuple[type[Exception], ...]:
        """Exceptions for the death of a worker; Ray's memory monitor kills one before the system does."""
        wrong = self.ray.exceptions
        return wrong.RayActorError, wrong.WorkerCrashedError, wrong.NodeDiedError, wrong.OutOfMemoryError

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self.ray.kill(actor)

    def drop(self, token: int, workers: Sequence[int]) -> None:
        """Release messages; their workers receive the token with their next task."""
        for worker in workers:
            self._dropped[worker].append(token)

    def dropped(self, worker: int) -> tuple[int, ...]:
        """Tokens of released messages to pass to a worker, once."""
        return tuple(self._dropped.pop(worker, ()))

    def settle(self, federation: Federation) -> None:
        """Restart dead workers, and set up a federation on all of them unless it is the current one."""
        self._revive()
        f = federation
        site = (f.model, f.shards, f.work, f.seed)
        if self._site is not None and all(a is b for a, b in zip(site, self._site, strict=True)):
            return
        self._taught.clear()
        self._settled = self._describe(federation)
        self._set_up(range(len(self)))
        self._site = site

    def _describe(self, f: Federation) -> tuple[Any, ...]:
        m, samples = f.model, (f.shards.x, f.shards.y)

        def site() -> WorkerSetup:
            module = copy.deepcopy(m.module).cpu()         # parameters with their own storage, not views of a vector
            loss = copy.deepcopy(m.loss).cpu() if isinstance(m.loss, Module) else m.loss
            return WorkerSetup(
                module, loss, m.penalty, m.dtype, m.mixes, m.stacks, m.numerics,
                None if m.sharing is None else m.sharing.to("cpu"),
                m.device.type, f.shards.offsets, f.work, f.seed, structure(samples),
            )  # fmt: skip

        parts = {"model": m.module, "loss": m.loss, "penalty": m.penalty, "augmentation": f.work.augment}
        data = self._pickled(site, parts)
        self._shared, self._vector = [], m.d * m.dtype.itemsize
        return self.ray.put(data), *self.share(samples)

    def share(self, tree: Samples) -> list[Any]:
        """Put the tensors of samples into the object store, once per federation; return references.

        Raises:
            ConfigError: they do not fit; the message gives the size required.
        """
        samples = flat(tree)
        new = [t for t in samples if all(t is not known for known, _ in self._shared)]
        if new:
            self._check_room(sum(t.nbytes for t in new) + sum(t.nbytes for t, _ in self._shared))
        self._shared += [(t, self.ray.put(to_array(t))) for t in new]
        refs = {id(t): ref for t, ref in self._shared}     # ids are unique while the tensors are held
        return [refs[id(t)] for t in samples]

    def _pickled(self, make: Callable[[], Any], parts: Mapping[str, Any]) -> bytes:
        """Pickle a value.

        Raises:
            ConfigError: it cannot be sent to another process; names the offending attribute among ``parts``.
        """
        dumps: Callable[[Any], bytes] = self.ray.cloudpickle.dumps
        try:
            return dumps(make())
        except Exception as error:
            raise refused(error, "be sent to another process", parts, dumps) from error

    def _check_room(self, samples: int) -> None:
        vector = self._vector
        room = self.ray.cluster_resources().get("object_store_memory", math.inf)
        needed = samples + 4 * (1 + len(self)) * vector
        if needed > room:
            raise ConfigError(
                f"the object store has {room / 1e6:,.0f} MB; samples ({samples / 1e6:,.0f} MB) and models under way"
                f" ({vector / 1e6:,.1f} MB each) need {needed / 1e6:,.0f} MB: set --ray.object_store_memory to"
                f" {int(needed * 1.1)} or more"
            )

    def _set_up(self, workers: Sequence[int]) -> None:
        calls = [self.call(k, "settle", *self._settled) for k in workers] if self._settled else []
        calls += [self.call(k, "learn", name, fn) for k in workers for name, fn in self._taught.values()]
        self.get([ref for refs in calls for ref in refs])

    def teach(self, fn: Callable[..., Any]) -> str:
        """Send a client function to all workers, once; return its name there."""
        if fn not in self._taught:
            name = f"{getattr(fn, '__qualname__', fn)} {next(self._numbers)}"
            data = self._pickled(lambda: fn, {"algorithm": getattr(fn, "__self__", fn)})
            self._taught[fn] = name, data                  # before sending: a worker that dies now gets it at restart
            if len(self._taught) > MOST_FUNCTIONS:         # workers evict the same one
                del self._taught[next(iter(self._taught))]
            self.get([self.call(k, "learn", name, data)[0] for k in range(len(self))])
        return self._taught[fn][0]

    def _revive(self) -> None:
        """Restart dead workers, as many as fit. The round is lost, and with it all messages."""
        if not self._suspect:
            return
        self._dropped.clear()
        alive, dead = [], []
        for k, actor in enumerate(self._actors):
            try:
                self.ray.get(actor.forget_all.remote(), timeout=PATIENCE)
                alive.append(k)
            except (*self._deaths, self.ray.exceptions.GetTimeoutError):
                self.ray.kill(actor)
                dead.append(k)
        room = min(len(dead), self._room() - len(alive))   # fewer when a machine is lost
        self._actors = [self._actors[k] for k in alive]
        self._actors += self._started(max(0, room))
        if not self._actors:
            raise RunError("no worker could be started again; is a machine of the cluster gone?")
        self._suspect = False
        self._set_up(range(len(alive), len(self)))


def _late(missing: int, count: int) -> RunError:
    return RunError(f"{missing} of {count} actors did not start within {PATIENCE:.0f} s; is the cluster full?")


def _line(error: Exception) -> str:
    """First line of a Ray error without colours and actor locations, at most 200 characters."""
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    found = [line for line in lines if line and not line.startswith("ray::")]
    return (found[0] if found else type(error).__name__)[:200]
