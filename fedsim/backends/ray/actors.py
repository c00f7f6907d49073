"""The workers of a session: actors that are started again when they die, and know the federation and its functions."""

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

from fedsim.backends.ray.actor import MOST_FUNCTIONS, Worker
from fedsim.backends.ray.object_store import to_array
from fedsim.backends.ray.protocol import Facts, WorkerSetup
from fedsim.engine.federation import Federation
from fedsim.engine.unpicklable import refused
from fedsim.errors import ConfigError, RoundLostError, RunError, StateLostError
from fedsim.experiment.execution import Ray

PATIENCE = 180.0
"""Seconds that an actor may take to start."""


class Workers:
    """Actors, by number.

    Args:
        ray: Ray, connected.
        settings: how many, and what each gets.
        gpus: share of a GPU for each.
    """

    def __init__(self, ray: ModuleType, settings: Ray, gpus: float = 0.0) -> None:
        self.ray, self.settings, self.gpus = ray, settings, gpus
        self.threads = settings.threads or max(1, int(settings.cpus))
        self._actors: list[Any] = []
        self._dropped: dict[int, list[int]] = defaultdict(list)          # by worker: messages not needed any more
        self._taught: dict[Callable[..., Any], tuple[str, bytes]] = {}   # its name there, and what was sent
        self._numbers = count()                            # of functions
        self._site: tuple[Any, ...] | None = None          # what identifies it
        self._settled: tuple[Any, ...] = ()                # what a worker is told of it
        self._shared: list[tuple[Tensor, Any]] = []        # samples that are in the store
        self._vector = 0                                   # bytes of a model
        self._suspect = False
        self._actors = [self._start() for _ in range(self._count())]   # they come up meanwhile

    def __len__(self) -> int:
        return len(self._actors)

    @cached_property
    def facts(self) -> list[Facts]:
        """What each was when it had started.

        Raises:
            RunError: they do not start.
        """
        refs = [actor.ready.remote() for actor in self._actors]
        _, missing = self.ray.wait(refs, num_returns=len(refs), timeout=PATIENCE)
        if missing:
            raise _late(len(missing), len(refs))
        found: list[Facts] = self.get(refs)
        return found

    def _count(self) -> int:
        """How many actors there will be."""
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
        """For how many there are processors and GPUs."""
        there = self.ray.cluster_resources()
        room = there.get("CPU", 0) / self.settings.cpus
        return int(1e-9 + (min(room, there.get("GPU", 0) / self.gpus) if self.gpus else room))

    def _start(self) -> Any:
        s = self.settings
        options = {"num_cpus": s.cpus, "num_gpus": self.gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        paths = [path for path in sys.path if path]
        return self.ray.remote(Worker).options(**options).remote(paths, self.threads)

    def _started(self, count: int) -> list[Any]:
        """New actors, once they are up; fewer where a machine went whose loss had not been noticed.

        Raises:
            RunError: they do not start.
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
        """Have a worker do something; references to its results."""
        refs = getattr(self._actors[worker], method).options(num_returns=results).remote(*arguments)
        return [refs] if results == 1 else list(refs)

    def get(self, refs: Sequence[Any]) -> list[Any]:
        """Results.

        Raises:
            RoundLostError: a worker died.
            StateLostError: a memory of a client is gone.
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
            raise StateLostError(f"memories of clients went with the machine that held them: {_line(error)}") from error
        except (wrong.ObjectStoreFullError, wrong.OutOfDiskError) as error:
            raise RunError(
                f"no room is left for what workers share: {_line(error)}; give --ray.object_store_memory more bytes, or"
                " TMPDIR a folder on a disk with more room"
            ) from error

    @property
    def _deaths(self) -> tuple[type[Exception], ...]:
        """Errors that mean that a worker died; its memory monitor kills one before the system does."""
        wrong = self.ray.exceptions
        return wrong.RayActorError, wrong.WorkerCrashedError, wrong.NodeDiedError, wrong.OutOfMemoryError

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self.ray.kill(actor)

    def drop(self, token: int, workers: Sequence[int]) -> None:
        """These messages are not needed any more; the workers that hold them hear of it with their next task."""
        for worker in workers:
            self._dropped[worker].append(token)

    def dropped(self, worker: int) -> tuple[int, ...]:
        """What to tell a worker."""
        return tuple(self._dropped.pop(worker, ()))

    def settle(self, federation: Federation) -> None:
        """Tell all workers of a federation, unless they know it; start those again that died."""
        self._revive()
        f = federation
        site = (f.model, f.shards, f.work, f.seed)
        if self._site is not None and all(a is b for a, b in zip(site, self._site, strict=True)):
            return
        self._taught.clear()
        self._settled = self._describe(federation)
        self._tell(range(len(self)))
        self._site = site

    def _describe(self, f: Federation) -> tuple[Any, ...]:
        m = f.model

        def site() -> WorkerSetup:
            module = copy.deepcopy(m.module).cpu()         # parameters with memory of their own, not views of a vector
            return WorkerSetup(module, m.loss, m.penalty, m.dtype, m.device.type, f.shards.offsets, f.work, f.seed)

        data = self._pickled(site, {"model": m.module, "loss": m.loss, "penalty": m.penalty})
        self._shared, self._vector = [], m.d * m.dtype.itemsize
        return self.ray.put(data), *self.share(f.shards.x, f.shards.y)

    def share(self, *samples: Tensor) -> list[Any]:
        """References to samples in the object store, where they are put once in a federation's life.

        Raises:
            ConfigError: they do not fit; says how large it must be.
        """
        new = [t for t in samples if all(t is not known for known, _ in self._shared)]
        if new:
            self._check_room(sum(t.nbytes for t in new) + sum(t.nbytes for t, _ in self._shared))
        self._shared += [(t, self.ray.put(to_array(t))) for t in new]
        refs = {id(t): ref for t, ref in self._shared}     # no other object can have the number of one that is held
        return [refs[id(t)] for t in samples]

    def _pickled(self, make: Callable[[], Any], parts: Mapping[str, Any]) -> bytes:
        """The bytes of a value.

        Raises:
            ConfigError: it cannot be sent to another process; names the attribute, looked for in ``parts``.
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

    def _tell(self, workers: Sequence[int]) -> None:
        told = [self.call(k, "settle", *self._settled) for k in workers] if self._settled else []
        told += [self.call(k, "learn", name, fn) for k in workers for name, fn in self._taught.values()]
        self.get([ref for refs in told for ref in refs])

    def teach(self, fn: Callable[..., Any]) -> str:
        """Send a client function to all workers, once; its name there."""
        if fn not in self._taught:
            name = f"{getattr(fn, '__qualname__', fn)} {next(self._numbers)}"
            data = self._pickled(lambda: fn, {"algorithm": getattr(fn, "__self__", fn)})
            self._taught[fn] = name, data                  # before they are told: one that dies now learns it later
            if len(self._taught) > MOST_FUNCTIONS:         # workers forget the same one
                del self._taught[next(iter(self._taught))]
            self.get([self.call(k, "learn", name, data)[0] for k in range(len(self))])
        return self._taught[fn][0]

    def _revive(self) -> None:
        """Start workers that died, as many as there is room for. The round was lost, and with it all messages."""
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
        room = min(len(dead), self._room() - len(alive))   # less than before when a machine is gone
        self._actors = [self._actors[k] for k in alive]
        self._actors += self._started(max(0, room))
        if not self._actors:
            raise RunError("no worker could be started again; is a machine of the cluster gone?")
        self._suspect = False
        self._tell(range(len(alive), len(self)))


def _late(missing: int, count: int) -> RunError:
    return RunError(f"{missing} of {count} actors did not start within {PATIENCE:.0f} s; is the cluster full?")


def _line(error: Exception) -> str:
    """What an error of Ray says, without its places, and not all of it."""
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("ray::")]
    return (said[0] if said else type(error).__name__)[:200]
