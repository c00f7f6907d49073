"""Seconds of a round: the in-process backends against a plain PyTorch loop on the same work.

    python -m benchmarks.engine                     # every case, FedAvg
    python -m benchmarks.engine mlp --algorithm FedSpeed

All candidates of a case take turns in one process, each with each number of threads, and the fastest of all its turns
counts: on a shared machine the minimum is what the code costs, the rest is what the neighbours cost. The plain loop
runs FedAvg, or sharpness-aware steps against FedSpeed; it keeps no client state.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import algorithms
from benchmarks.plain import fedavg_round
from fedsim.backends.blocks import Blocks
from fedsim.backends.loop import Loop
from fedsim.clients import Backend, Federation
from fedsim.model import Model
from fedsim.models import MLP, Architecture, CifarLeNet, LeNet5, Logistic, McMahanCNN, ResNet18
from fedsim.models.losses import cross_entropy
from fedsim.work import LocalWork, Shards

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


@dataclass(frozen=True)
class Case:
    """One round's work: a cohort of ``cohort`` clients out of ``clients`` makes one epoch each."""

    model: Architecture
    shape: tuple[int, ...]
    clients: int
    cohort: int
    samples: int
    batch_size: int
    blocks: tuple[int, ...]


CASES = {
    "logistic-1-step": Case(Logistic(), MNIST, 1000, 100, 20, 20, (50, 100)),
    "logistic-2-steps": Case(Logistic(), MNIST, 1000, 100, 20, 10, (50, 100)),
    "mlp": Case(MLP(), MNIST, 100, 50, 100, 10, (5, 10)),
    "lenet5": Case(LeNet5(), MNIST, 100, 10, 100, 10, (1, 10)),
    "mcmahan-cnn": Case(McMahanCNN(), MNIST, 50, 5, 60, 10, (1,)),
    "cifar-lenet": Case(CifarLeNet(), CIFAR, 20, 2, 200, 50, (1,)),
    "resnet18": Case(ResNet18(stem="imagenet"), CIFAR, 10, 1, 150, 50, (1,)),
}


def candidates(case: Case, algorithm: Any) -> dict[str, Callable[[], object]]:
    """One round of each contender, by name."""
    torch.manual_seed(0)
    offsets = np.arange(case.clients + 1) * case.samples
    x, y = torch.randn(int(offsets[-1]), *case.shape), torch.randint(0, 10, (int(offsets[-1]),))
    shards, ids = Shards(x, y, offsets), np.arange(case.cohort) * (case.clients // case.cohort)
    module = case.model.build(case.shape, 10)
    rho = algorithm.rho if isinstance(algorithm, algorithms.FedSpeed) else None
    contenders: dict[str, Callable[[], object]] = {"plain": fedavg_round(module, shards, ids, case.batch_size, rho=rho)}
    fed = Federation(Model(module, cross_entropy), shards, LocalWork(case.batch_size), 0, Loop())
    state = algorithm.init(fed.model.vector(), fed.cohort(0, ids))

    def round(backend: Backend) -> Callable[[], object]:
        def run() -> object:
            fed.backend = backend
            return algorithm.round(state, fed.cohort(1, ids))

        return run

    contenders["loop"] = round(Loop())
    return contenders | {f"blocks {size}": round(Blocks(size)) for size in case.blocks}


def measure(case: Case, algorithm: Any, threads: list[int], seconds: float) -> dict[str, float]:
    """Least seconds of a round by contender, over all numbers of threads and about ``seconds`` of turns."""
    contenders = candidates(case, algorithm)
    best = dict.fromkeys(contenders, float("inf"))
    end, turns = time.perf_counter() + seconds, 0
    while turns < 3 or time.perf_counter() < end:
        for number in threads:
            torch.set_num_threads(number)
            for name, run in contenders.items():
                run()                                      # after another contender's turn: its own caches again
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
        turns += 1
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--algorithm", default="FedAvg", help="FedAvg by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of them; 1 2 by default")
    parser.add_argument("--seconds", type=float, default=20, help="time for each case; 20 by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - CASES.keys()
    if unknown or not hasattr(algorithms, arguments.algorithm):
        parser.error(f"unknown case or algorithm: {', '.join(unknown) or arguments.algorithm}")
    algorithm = getattr(algorithms, arguments.algorithm)()
    for name in arguments.cases or CASES:
        best = measure(CASES[name], algorithm, arguments.threads, arguments.seconds)
        if arguments.json:
            row = {"case": name, "algorithm": arguments.algorithm, "seconds": best, **asdict(CASES[name])}
            print(json.dumps(row), flush=True)
        else:
            parts = [f"{who} {t * 1e3:.1f} ms (x{best['plain'] / t:.2f})" for who, t in best.items()]
            print(f"{name:17} {arguments.algorithm:9}", "  ".join(parts), flush=True)


if __name__ == "__main__":
    main()
