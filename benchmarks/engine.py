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
from dataclasses import asdict, replace
from typing import Any

import torch

import algorithms
from benchmarks.plain import fedavg_round
from benchmarks.work import CIFAR, Work
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend
from fedsim.engine.loop import Loop
from fedsim.models import MLP, CifarLeNet, LeNet5, Logistic, McMahanCNN, ResNet18

CASES: dict[str, tuple[Work, tuple[int, ...]]] = {
    "logistic-1-step": (Work(Logistic(), 1000, 100, 20, 20), (50, 100)),
    "logistic-2-steps": (Work(Logistic(), 1000, 100, 20, 10), (50, 100)),
    "mlp": (Work(MLP(), 100, 50, 100), (5, 10)),
    "lenet5": (Work(LeNet5(), 100, 10, 100), (1, 10)),
    "mcmahan-cnn": (Work(McMahanCNN(), 50, 5, 60), (1,)),
    "cifar-lenet": (Work(CifarLeNet(), 20, 2, 200, 50, CIFAR), (1,)),
    "resnet18": (Work(ResNet18(stem="imagenet"), 10, 1, 150, 50, CIFAR), (1,)),
}
"""A round's work, and the sizes of blocks to try."""


def candidates(work: Work, sizes: tuple[int, ...], algorithm: Any) -> dict[str, Callable[[], object]]:
    """One round of each contender, by name."""
    fed, ids = work.federation(), work.ids
    rho = algorithm.rho if isinstance(algorithm, algorithms.FedSpeed) else None
    contenders: dict[str, Callable[[], object]] = {
        "plain": fedavg_round(work.module(), work.shards, ids, work.batch_size, rho=rho)
    }
    state = algorithm.init(fed.model.vector(), cohort(fed, 0, ids))

    def round(backend: Backend) -> Callable[[], object]:
        there = replace(fed, backend=backend)
        return lambda: algorithm.round(state, cohort(there, 1, ids))

    contenders["loop"] = round(Loop())
    return contenders | {f"blocks {size}": round(Blocks(size)) for size in sizes}


def measure(work: Work, sizes: tuple[int, ...], algorithm: Any, threads: list[int], seconds: float) -> dict[str, float]:
    """Least seconds of a round by contender, over all numbers of threads and about ``seconds`` of turns."""
    contenders = candidates(work, sizes, algorithm)
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
        best = measure(*CASES[name], algorithm, arguments.threads, arguments.seconds)
        if arguments.json:
            row = {"case": name, "algorithm": arguments.algorithm, "seconds": best, **asdict(CASES[name][0])}
            print(json.dumps(row), flush=True)
        else:
            parts = [f"{who} {t * 1e3:.1f} ms (x{best['plain'] / t:.2f})" for who, t in best.items()]
            print(f"{name:17} {arguments.algorithm:9}", "  ".join(parts), flush=True)


if __name__ == "__main__":
    main()
