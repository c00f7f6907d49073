"""Cost of rounds that can always be repeated: memories of clients outside the actors, and an actor lost.

    python -m benchmarks.ray_safety

idle: a round of 20 clients that do nothing, on two actors: calls, and nothing else.
memories: a round of 10 clients that only renew a memory of ResNet-18's size (45 MB), on two actors, which read it from
    the object store and write it back; the same in this process, where it stays. Everything fits the store.
lost: the idle round, after one of the two actors was killed: notice, start another, do the round again.

The least of all repeats counts, for a loss the median.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.work import Work
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.object_store import ObjectStore
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.backends.ray.ray_host import RayHost
from fedsim.backends.ray.session import session
from fedsim.clients import Clients, cohort
from fedsim.engine.federation import Backend, Meter
from fedsim.engine.loop import Loop
from fedsim.engine.memory import Memory, OnDevice
from fedsim.experiment.execution import Ray
from fedsim.models import Logistic
from fedsim.types import Kept, Local
from fedsim.values import Vector

RESNET18 = 11_181_642


class KeepingState(NamedTuple):
    x: Vector                                              # [d] of the model, which nobody changes
    m: Kept[Vector]                                        # [n, size]


@dataclass(frozen=True)
class Keeping:
    """Clients that do nothing but renew a memory of ``size`` numbers."""

    size: int

    def init(self, x: Vector, clients: Clients) -> KeepingState:
        return KeepingState(x, clients.keep(torch.zeros(self.size)))

    def round(self, s: KeepingState, clients: Clients) -> KeepingState:
        sent, m = clients.each(self.client, s.x, s.m)
        return KeepingState(clients.mean(sent), s.m | m)

    def client(self, local: Local, x: Vector, m: Vector) -> tuple[Vector, Vector]:
        return x, m + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="of every round; 20 by default")
    parser.add_argument("--losses", type=int, default=3, help="of an actor; 3 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with session(cpus=2, gpus=0, object_store_bytes=3_000_000_000) as ray:
        workers = Workers(ray, Ray(actors=2))
        places: dict[str, tuple[Backend, Memory]] = {
            "actors": (RayActors(workers, 0), ObjectStore(ray)),
            "one process": (Loop(), OnDevice()),
        }
        host = RayHost(Ray(), workers=workers)
        for name, algorithm, work in (
            ("idle", Keeping(1), Work(Logistic(), 100, 20, 2)),
            ("memories", Keeping(RESNET18), Work(Logistic(), 10, 10, 2)),
        ):
            for place, (backend, memory) in places.items():
                fed, ids = replace(work.federation(), backend=backend, memory=memory), work.ids
                meter = Meter(fed)
                state, took = algorithm.init(fed.model.vector(), cohort(fed, 0)), []
                for round in range(1, arguments.repeats + 2):
                    start = time.perf_counter()
                    state = host.round(algorithm, state, fed, meter, round, ids)
                    took.append(time.perf_counter() - start)
                print(f"{name:9} {place:12} {1e3 * min(took[1:]):8.1f} ms a round of {len(ids)} clients", flush=True)
                del state
        backend, memory = places["actors"]
        fed = replace(Work(Logistic(), 100, 20, 2).federation(), backend=backend, memory=memory)
        meter, algorithm, took = Meter(fed), Keeping(1), []
        state = algorithm.init(fed.model.vector(), cohort(fed, 0))
        for round in range(1, arguments.losses + 1):
            state = host.round(algorithm, state, fed, meter, round, np.arange(20))
            process = workers.get([actor.ready.remote() for actor in workers._actors])[0].process
            os.kill(process, signal.SIGKILL)
            start = time.perf_counter()
            state = host.round(algorithm, state, fed, meter, round, np.arange(20))
            took.append(time.perf_counter() - start)
        print(f"lost      actors       {np.median(took):8.1f} s for a round that an actor died before", flush=True)


if __name__ == "__main__":
    main()
