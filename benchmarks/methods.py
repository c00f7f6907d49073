"""Cost of methods: a round of each against one of FedAvg.

    python -m benchmarks.methods                          # an MLP, one block of ten clients
    python -m benchmarks.methods --model cnn              # McMahan's CNN, blocks of one client
    python -m benchmarks.methods --model cifar            # the LeNet for CIFAR, the same

Ten clients with 600 random images each (two with 100 for the CNN and 250 for the LeNet), minibatches of 10 (50 for the
LeNet), one epoch, float32. Rounds of the
methods take turns; the least and the median processor time of a round are printed, and their ratios to FedAvg's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

import algorithms
from benchmarks.work import CIFAR, Work
from fedsim import MLP, CifarLeNet, McMahanCNN
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks

METHODS = ("FedAvg", "FedProx", "Scaffold", "FedSAM", "FedSpeed", "MoFedSAM", "FedGamma", "FedSMOO")
WORKS = {
    "mlp": (Work(MLP(), 10, 10, 600), 10),
    "cnn": (Work(McMahanCNN(), 2, 2, 100), 1),
    "cifar": (Work(CifarLeNet(), 2, 2, 250, 50, CIFAR), 1),
}
"""A round's work, and clients in a block."""


def turns(work: Work, size: int, names: Sequence[str], number: int) -> dict[str, list[float]]:
    """Processor seconds of rounds by method, in turns; the first round of each, which records, is left out."""
    fed = replace(work.federation(), backend=Blocks(size))
    methods = {name: getattr(algorithms, name)() for name in names}
    states = {name: method.init(fed.model.vector(), cohort(fed, 0)) for name, method in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(number + 1):
        for name, method in methods.items():
            start = time.process_time()
            method.round(states[name], cohort(fed, 1))
            seconds[name] += [time.process_time() - start] * (turn > 0)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all with known steps by default")
    parser.add_argument("--model", choices=WORKS, default="mlp", help="mlp by default")
    parser.add_argument("--turns", type=int, default=12, help="rounds of each; 12 by default")
    parser.add_argument("--threads", type=int, default=1, help="threads; 1 by default")
    arguments = parser.parse_args()
    names = dict.fromkeys(["FedAvg", *(arguments.methods or METHODS)])
    if unknown := [name for name in names if not hasattr(algorithms, name)]:
        parser.error(f"no algorithm {unknown[0]!r}; fedsim list algorithms has all")
    torch.set_num_threads(arguments.threads)
    seconds = turns(*WORKS[arguments.model], [*names], arguments.turns)
    base = seconds["FedAvg"]
    for name, each in seconds.items():
        ratios = f"{min(each) / min(base):.2f} (median {median(each) / median(base):.2f})"
        print(f"{name:10} {min(each) * 1e3:7.1f} ms   {ratios}", flush=True)


if __name__ == "__main__":
    main()
