"""Memory of 100 clients that keep a model of ResNet-18's size (45 MB) each, on two actors: SCAFFOLD, 10 a round.

    python -m benchmarks.ray_memory

Every client takes part once, so that at the end all 100 memories (4.2 GiB) are there; some take part again, and a
checkpoint of all is written. Measured ten times a second, from the start of Ray to its end, are this process and
everything it started: private memory and mapped files by proportional set size (PSS), shared memory in full and once.
Fails when the peak is above the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import torch

from algorithms import Scaffold
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.object_store import ObjectStore
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.backends.ray.session import session
from fedsim.clients import cohort
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.model import Model
from fedsim.experiment.execution import Ray
from fedsim.models import ResNet18
from fedsim.models.losses import cross_entropy
from fedsim.record import checkpoint
from fedsim.record.state import flatten

GIB = 2**30


PAUSE = 0.1
"""Seconds between two looks at the memory."""


def used(root: int) -> int:
    """Bytes of a process and all below it: their proportional share of private memory and files, and the files of
    shared memory that they have open, whole, each once, whoever has touched its pages.
    """
    total, stores = 0, dict[tuple[int, int], int]()
    top = psutil.Process(root)
    for process in [root, *(child.pid for child in top.children(recursive=True))]:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    total += 1024 * int(line.split()[1])
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).startswith("/dev/shm/"):
                        file = link.stat()
                        stores[file.st_dev, file.st_ino] = 512 * file.st_blocks
    return total + sum(stores.values())


class Watch:
    """Looks at the memory of this process and all below it all the time, from a thread."""

    def __init__(self) -> None:
        self.peak = self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(PAUSE):
            self.peak = max(self.peak, used(os.getpid()))
            self.looks += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--cohort", type=int, default=10, help="clients in a round; 10 by default")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--store", type=float, default=2.0, help="GiB of the object store; the rest is spilled; 2")
    parser.add_argument("--limit", type=float, default=8.0, help="GiB; 8 by default")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    n = arguments.clients
    x, y = torch.randn(2 * n, 3, 32, 32), torch.randint(0, 10, (2 * n,))
    model = Model(ResNet18(stem="imagenet").build((3, 32, 32), 10), cross_entropy)
    cohorts = np.array_split(np.arange(n), max(1, n // arguments.cohort))
    store, start = int(arguments.store * GIB), time.perf_counter()
    with Watch() as watch, session(cpus=arguments.actors, gpus=0, object_store_bytes=store) as ray:
        shards, backend = Shards(x, y, np.arange(n + 1) * 2), RayActors(Workers(ray, Ray(actors=arguments.actors)), 0)
        fed = Federation(model, shards, LocalWork(2), 0, backend, memory=ObjectStore(ray))
        algorithm = Scaffold()
        state = algorithm.init(model.vector(), cohort(fed, 0))
        for round, ids in enumerate([*cohorts, *cohorts[:2]], 1):
            state = algorithm.round(state, cohort(fed, round, ids))
            print(f"round {round}: peak {watch.peak / GIB:.2f} GiB", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            tensors, memories = flatten(state)
            checkpoint.save(Path(folder), round, tensors, {}, memories=memories)
        print(f"checkpoint: peak {watch.peak / GIB:.2f} GiB", flush=True)
        kept = len(state.c_i.rows) * model.d * 4 / GIB
    print(
        f"{n} clients with a vector of {model.d:,} each ({kept:.2f} GiB) on {arguments.actors} actors: peak"
        f" {watch.peak / GIB:.2f} GiB of {watch.looks} looks, {time.perf_counter() - start:.0f} s"
    )
    if watch.peak > arguments.limit * GIB:
        sys.exit(f"the peak is above {arguments.limit} GiB")


if __name__ == "__main__":
    main()
