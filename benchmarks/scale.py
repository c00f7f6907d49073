"""What a run costs when one size grows: seconds of set-up and of a round, peak memory, bytes on disk.

    python -m benchmarks.scale clients 10000 100000 1000000
    python -m benchmarks.scale clients 1000000 10000000 --lazy
    python -m benchmarks.scale nodes 1000 10000 100000 --graph Exponential --rounds 2

Whole experiments in processes of their own, with the defaults of a run but for its sizes: logistic regression, one
local epoch over 10 samples, evaluation before the first round and after the last. The last column is the slope of the
processor seconds of a round in the size, on logarithmic axes: 0 where it costs nothing, 1 where it is proportional.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import algorithms
import topologies
from fedsim.api import run
from fedsim.controller.host import Host
from fedsim.data import Dataset, Split, dataset_by_client
from fedsim.engine.local_work import LocalWork
from fedsim.experiment.evaluation import Evaluation
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.sampling import FixedSize
from fedsim.models import Logistic
from fedsim.partition import NaturalIdPartitioner

SIZES = {"clients": 10_000, "nodes": 0, "cohort": 100, "features": 16, "rounds": 20}
SAMPLES = 10
MIB = 2**10
"""In the units of ``ru_maxrss`` on Linux, kibibytes."""


def now() -> tuple[float, float]:
    """Seconds of a clock and of this process's processors: the latter also say something of a busy machine."""
    return time.perf_counter(), time.process_time()


class Timed(Host):
    """This process, which notes when each round begins, in seconds of a clock and of its processors."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[float, float]] = []

    def round(self, *arguments: Any, **more: Any) -> Any:
        """See ``Host``."""
        self.begun.append(now())
        return super().round(*arguments, **more)


def resident(n: int, d: int) -> Dataset:
    """Samples of ``n`` clients in memory."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n * SAMPLES, d, generator=generator)
    y = (x[:, 0] > 0).long()
    return Dataset("random", Split(x, y, np.arange(n).repeat(SAMPLES)), Split(x[:1000].clone(), y[:1000].clone()), 2)


def lazy(n: int, d: int) -> Dataset:
    """Samples of ``n`` clients by a function, which are made when a round needs them."""

    def load(client: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.random.default_rng(client).standard_normal((SAMPLES, d), np.float32)
        return x, (x[:, 0] > 0).astype(np.int64)

    x, y = zip(*map(load, range(100)), strict=True)
    return dataset_by_client(load, np.full(n, SAMPLES), (np.concatenate(x), np.concatenate(y)), 2)


def experiment(sizes: dict[str, int], algorithm: str, graph: str, by_function: bool = False) -> Experiment:
    """The experiment of these sizes; ``nodes`` above 0 is their number in a method without a server."""
    n, d = sizes["nodes"] or sizes["clients"], sizes["features"]
    data = lazy(n, d) if by_function else resident(n, d)
    return Experiment(
        getattr(algorithms, algorithm)(),
        data=data,
        partition=NaturalIdPartitioner(),
        model=Logistic(),
        topology=topologies.Static(getattr(topologies, graph)()) if sizes["nodes"] else None,
        local=LocalWork(SAMPLES),
        sampling=FixedSize() if sizes["nodes"] else FixedSize(size=sizes["cohort"]),
        rounds=sizes["rounds"],
        evaluation=Evaluation(every=sizes["rounds"]),
    )


def measure(sizes: dict[str, int], algorithm: str, graph: str, by_function: bool) -> dict[str, float]:
    """Run one experiment in this process."""
    made = experiment(sizes, algorithm, graph, by_function)
    host, before = Timed(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    with tempfile.TemporaryDirectory() as folder:
        start = now()
        run(made, root=Path(folder), progress=False, host=host)
        end = now()
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    moments = np.array([start, *host.begun, end])
    took = np.diff(moments, axis=0)                        # set-up; each round; the last one with its evaluation
    seconds, of_processors = np.stack([took[0], np.median(took[1:-1] if len(took) > 2 else took[1:], 0), took[-1]]).T
    return {
        **dict(zip(("set-up s", "round s", "end s"), seconds.tolist(), strict=True)),
        **dict(zip(("set-up cpu s", "round cpu s", "end cpu s"), of_processors.tolist(), strict=True)),
        "before MiB": before,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB,
        "disk MB": disk / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES, help="what grows")
    parser.add_argument("values", type=int, nargs="+", help="its values")
    for name, usual in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{usual} by default")
    parser.add_argument("--algorithm", help="FedAvg by default; DPSGD with nodes")
    parser.add_argument("--graph", default="Ring", help="of the nodes; Ring by default")
    parser.add_argument("--lazy", action="store_true", help="samples by a function of the client, not in memory")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in SIZES}
    if arguments.one:
        sizes[arguments.size] = arguments.values[0]
        algorithm = arguments.algorithm or ("DPSGD" if sizes["nodes"] else "FedAvg")
        print(json.dumps(measure(sizes, algorithm, arguments.graph, arguments.lazy)))
        return
    last: tuple[int, float] | None = None
    for value in arguments.values:
        command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--one"]
        command[4 : 4 + len(arguments.values)] = [str(value)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
        slope = "-" if last is None else f"{math.log(found['round cpu s'] / last[1]) / math.log(value / last[0]):.2f}"
        costs = ", ".join(f"{name} {cost:.4g}" for name, cost in found.items())
        print(f"{arguments.size} {value:>10,}: {costs}, slope {slope}", flush=True)
        last = value, found["round cpu s"]


if __name__ == "__main__":
    main()
