"""Peak memory of a federation of 10,000 clients that each keep a vector of 61,706 numbers: Scaffold with LeNet-5.

    python -m benchmarks.memory

Every client takes part once, 100 a round, so that at the end all 10,000 vectors (2.3 GiB) are in memory, beside the
messages of a round and the samples. Fails when the peak is above the limit.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
import torch

from algorithms import Scaffold
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models import LeNet5
from fedsim.models.losses import cross_entropy

GIB = 2**20
"""In the units of ``ru_maxrss`` on Linux, kibibytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=100, help="clients in a round; 100 by default")
    parser.add_argument("--block-size", type=int, default=10, help="clients in a block; 0 for the loop; 10 by default")
    parser.add_argument("--limit", type=float, default=6.0, help="GiB; 6 by default")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    n = arguments.clients
    x, y = torch.randn(2 * n, 1, 28, 28), torch.randint(0, 10, (2 * n,))
    backend: Backend = Blocks(arguments.block_size) if arguments.block_size else Loop()
    model = Model(LeNet5().build((1, 28, 28), 10), cross_entropy)
    fed = Federation(model, Shards(x, y, np.arange(n + 1) * 2), LocalWork(2), 0, backend)
    algorithm, start = Scaffold(), time.perf_counter()
    state = algorithm.init(model.vector(), cohort(fed, 0))
    for round, ids in enumerate(np.array_split(np.arange(n), max(1, n // arguments.cohort)), 1):
        state = algorithm.round(state, cohort(fed, round, ids))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    kept = len(state.c_i.rows) * model.d * 4 / 2**30
    print(
        f"{n} clients with a vector of {model.d} each ({kept:.2f} GiB, {len(state.c_i.rows)} written), {backend}:"
        f" peak {peak:.2f} GiB, {time.perf_counter() - start:.0f} s"
    )
    if peak > arguments.limit:
        sys.exit(f"the peak is above {arguments.limit} GiB")


if __name__ == "__main__":
    main()
