"""Speed of gossip: one exchange of many models on a sparse graph, and a whole round of DFedSAM with many nodes.

1. Mixing: one step ``X <- W X`` of ``mix_rows`` on a torus (4 neighbours each), against its floor: five rows read and
   one written for every row, at the speed at which memory is copied in the same run (a copy reads one and writes one,
   so the floor is three copies). All into memory that has been in use; what the first touch of new memory costs is
   shown apart.
2. Round: DFedSAM on logistic regression, one local epoch with batches of 32, on a torus; the seconds of its two halves,
   local steps and exchange, and the seconds that processors were busy with it.
3. Stored: one exchange of ``mix_stored`` in a file of 2 GB, with 256 MiB to work with, and by how much the
   process grew; once with all columns of a node next to each other, once in chunks of columns.

Times are the best of several repeats. Run: python -m benchmarks.gossip (5 GB of memory, about a minute), with
FEDSIM_DATA leading to FashionMNIST, or --synthetic; on a small machine add --nodes 1000. On a machine that others use
as well, OMP_NUM_THREADS=1: threads that wait for each other there measure the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from algorithms import DFedSAM
from fedsim import Execution, Experiment, LocalWork
from fedsim.clients import cohort
from fedsim.controller.prepare import prepare
from fedsim.data import Dataset, Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.machine import keep_freed_memory
from fedsim.errors import FedsimError
from fedsim.experiment.experiment import Data
from fedsim.messages.mixing import mix_rows
from fedsim.messages.outofcore import mix_stored
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner
from topologies import Static, Torus

TOPOLOGY = Static(Torus())


class Times(NamedTuple):
    """Seconds: on the clock, and that processors were busy, which other work on the machine does not change much."""

    clock: float
    processor: float


def best(action: Callable[[], object], repeats: int) -> Times:
    """Of the fastest of several calls, each by itself."""
    times = []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        action()
        times.append(Times(time.perf_counter() - start, time.process_time() - busy))
    return Times(*map(min, zip(*times, strict=True)))


def mixing(nodes: int, dimension: int, repeats: int) -> dict[str, float]:
    """Part 1, for a stack of ``nodes`` models of ``dimension`` float32 numbers; all times in seconds."""
    w = TOPOLOGY.matrix(1, 0, nodes)
    x = torch.empty(nodes, dimension).uniform_(generator=torch.Generator().manual_seed(0))
    begin = time.perf_counter()
    out = mix_rows(w, x)
    new = time.perf_counter() - begin
    half = repeats - repeats // 2
    copies = [best(lambda: out.copy_(x), half)]
    mix = best(lambda: mix_rows(w, x, out), repeats)
    copies.append(best(lambda: out.copy_(x), half))
    copy = Times(*map(min, zip(*copies, strict=True)))
    return {
        "nodes": nodes,
        "dimension": dimension,
        "gigabytes": x.nbytes / 1e9,
        "copy": copy.clock,
        "floor": 3 * copy.clock,
        "mix": mix.clock,
        "mix_into_new_memory": new,
        "times_floor": mix.clock / (3 * copy.clock),
        "times_floor_of_processor": mix.processor / (3 * copy.processor),
    }


def round_of_dfedsam(nodes: int, data: Data | Dataset, repeats: int) -> dict[str, float]:
    """Part 2; all times in seconds."""
    algorithm = DFedSAM(lr=0.1, rho=0.01)
    experiment = Experiment(
        algorithm,
        data=data,
        partition=IidPartitioner(nodes),
        model=Logistic(),
        local=LocalWork(batch_size=32),
        topology=TOPOLOGY,
        execution=Execution(device="cpu"),
    )
    federation = replace(prepare(experiment, 0).federation, backend=Blocks(25))
    state = algorithm.init(federation.model.vector(), cohort(federation, 0))
    times = []
    for number in range(repeats + 1):
        clients = cohort(federation, number + 1)
        begin, busy = time.perf_counter(), time.process_time()
        sent = clients.each(algorithm.client, None, state.x)           # the body of DFedSAM.round, clocked
        middle = time.perf_counter()
        state = state._replace(x=state.x | clients.mix(sent))
        times.append((time.perf_counter() - begin, middle - begin, time.process_time() - busy))
    total, local, busy = min(times[1:])                              # the first warms up
    return {
        "nodes": nodes,
        "parameters": federation.model.d,
        "round": total,
        "local_steps": local,
        "exchange": total - local,
        "processor": busy,
    }


def stored(dimension: int, repeats: int) -> dict[str, float]:
    """Part 3, for 1,000 nodes of ``dimension`` float32 numbers."""
    nodes, width = 1000, 4096
    w = TOPOLOGY.matrix(1, 0, nodes)
    found: dict[str, float] = {"nodes": nodes, "dimension": dimension, "gigabytes": 4 * nodes * dimension / 1e9}
    before = peak()
    for name, shape in (("rows", (nodes, dimension)), ("chunks", (dimension // width, nodes, width))):
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(4 * nodes * dimension)           # zeros, which are written out when they are mixed
            stack = np.memmap(file.name, np.float32, "r+", shape=shape)
            found[name] = best(lambda: mix_stored(w, stack), repeats).clock  # noqa: B023 - called at once
    return found | {"grown_MiB": (peak() - before) / 2**20}


def peak() -> int:
    """Most bytes of memory that this process had at a time."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def synthetic(samples: int) -> Dataset:
    """Noise in the shape of FashionMNIST."""
    draw = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        return Split(torch.randn(n, 1, 28, 28, generator=draw), torch.randint(10, (n,), generator=draw))

    return Dataset("noise", split(samples), split(1_000), classes=10)


def table(title: str, numbers: dict[str, float]) -> Table:
    shown = Table("", "", title=title, title_justify="left", box=SIMPLE, show_header=False)
    for name, value in numbers.items():
        shown.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000, help="of the mixing (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=61_706, help="of the mixing: LeNet-5 (default: %(default)s)")
    parser.add_argument("--round-nodes", type=int, default=1000, help="of the round (default: %(default)s)")
    parser.add_argument("--stored-dimension", type=int, default=2**19, help="of the file (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default: %(default)s)")
    parser.add_argument("--synthetic", action="store_true", help="noise in the shape of FashionMNIST")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        measured: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        measured["stored"] = stored(options.stored_dimension, options.repeats)   # first: freed memory is used again
        measured["mixing"] = mixing(options.nodes, options.dimension, options.repeats)
        data = synthetic(60 * options.round_nodes) if options.synthetic else Data("fashion_mnist")
        measured["round"] = round_of_dfedsam(options.round_nodes, data, options.repeats)
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(measured))
        return 0
    title = f"seconds, {measured['threads']} threads"
    Console().print(table(f"One exchange, {title}", measured["mixing"]))
    Console().print(table(f"A round of DFedSAM, {title}", measured["round"]))
    Console().print(table(f"One exchange in a file, {title}", measured["stored"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
