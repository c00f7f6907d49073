"""Memory of 100 clients that keep a model of ResNet-18's size (45 MB) each, on two actors: SCAFFOLD, 10 a round.

    python -m benchmarks.ray_memory

Every client takes part once, so that at the end all 100 memories (4.2 GiB) are there. Measured is the proportional set
size (PSS) of this process and everything it started, shared memory included, after each round. Fails when the peak is
above the limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from algorithms import Scaffold
from fedsim.backends.loop import Loop
from fedsim.backends.ray.actors import RayActors
from fedsim.backends.ray.session import session
from fedsim.backends.ray.settings import Ray
from fedsim.backends.ray.workers import Workers
from fedsim.clients import Federation
from fedsim.model import Model
from fedsim.models import ResNet18
from fedsim.models.losses import cross_entropy
from fedsim.work import LocalWork, Shards

GIB = 2**30


def tree_bytes(root: int) -> int:
    """PSS of a process and of all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    total, todo = 0, [root]
    while todo:
        process = todo.pop()
        todo += parents.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--cohort", type=int, default=10, help="clients in a round; 10 by default")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--store", type=float, default=2.5, help="GiB of the object store; the rest is spilled; 2.5")
    parser.add_argument("--limit", type=float, default=8.0, help="GiB; 8 by default")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    n = arguments.clients
    x, y = torch.randn(2 * n, 3, 32, 32), torch.randint(0, 10, (2 * n,))
    model = Model(ResNet18(stem="imagenet").build((3, 32, 32), 10), cross_entropy)
    peak, start = 0, time.perf_counter()
    with session(cpus=arguments.actors, gpus=0, object_store_bytes=int(arguments.store * GIB)) as ray:
        fed = Federation(model, Shards(x, y, np.arange(n + 1) * 2), LocalWork(2), 0, Loop())
        fed.backend = RayActors(Workers(ray, Ray(actors=arguments.actors)), 0)
        algorithm = Scaffold()
        state = algorithm.init(model.vector(), fed.cohort(0))
        for round, ids in enumerate(np.array_split(np.arange(n), max(1, n // arguments.cohort)), 1):
            state = algorithm.round(state, fed.cohort(round, ids))
            peak = max(peak, tree_bytes(os.getpid()))
            print(f"round {round}: {tree_bytes(os.getpid()) / GIB:.2f} GiB", flush=True)
    kept = len(state.c_i.rows) * model.d * 4 / GIB
    print(
        f"{n} clients with a vector of {model.d:,} each ({kept:.2f} GiB) on {arguments.actors} actors: peak"
        f" {peak / GIB:.2f} GiB, {time.perf_counter() - start:.0f} s"
    )
    if peak > arguments.limit * GIB:
        sys.exit(f"the peak is above {arguments.limit} GiB")


if __name__ == "__main__":
    main()
