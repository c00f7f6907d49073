"""Cost of local optimisers: a local step of each against one of SGD.

    python -m benchmarks.optimizers

FedAvg on 25 clients in one block, 32 random images of 784 numbers each in every step, float32, for a wide and a narrow
perceptron. Rounds of the optimisers take turns; for each the least processor time of a step is printed, and its ratio
to SGD's. RMSprop has no fused kernel in PyTorch; "Adam, by its formula" does without one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from algorithms import FedAvg
from benchmarks.work import Work
from fedsim import MLP, SGD, Adagrad, Adam, AdamW, HeavyBall, LocalWork, Nesterov, RMSprop
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks

CLIENTS, BATCH = 25, 32


@dataclass(frozen=True)
class Formula(Adam):
    """Adam, which the engine does not recognise."""


OPTIMIZERS: dict[str, Any] = {
    "SGD": SGD(),
    "HeavyBall": HeavyBall(),
    "Nesterov": Nesterov(),
    "RMSprop": RMSprop(),
    "Adagrad": Adagrad(),
    "Adam": Adam(),
    "AdamW": AdamW(),
    "Adam, by its formula": Formula(),
}


def least(hidden: int, steps: int, turns: int) -> dict[str, float]:
    """Least processor seconds of a step, by optimiser."""
    fed = Work(MLP((hidden,)), CLIENTS, CLIENTS, BATCH * steps, BATCH).federation()
    feds = {
        name: replace(fed, work=LocalWork(BATCH, steps=steps, optimizer=by), backend=Blocks(CLIENTS))
        for name, by in OPTIMIZERS.items()
    }
    best, method = dict.fromkeys(feds, float("inf")), FedAvg(0.001)
    state = method.init(fed.model.vector(), cohort(fed, 0))
    for turn in range(turns + 1):                          # the first one records
        for name, each in feds.items():
            start = time.process_time()
            method.round(state, cohort(each, 1))
            best[name] = min(best[name], (time.process_time() - start) / steps if turn else best[name])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="rounds of each optimiser; 15 by default")
    parser.add_argument("--steps", type=int, default=20, help="local steps in a round; 20 by default")
    parser.add_argument("--threads", type=int, default=1, help="threads; 1 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for hidden in (200, 32):
        best = least(hidden, arguments.steps, arguments.turns)
        print(f"784-{hidden}-10")
        for name, seconds in best.items():
            print(f"  {name:22} {seconds * 1e3:6.2f} ms a step   {seconds / best['SGD']:.2f}")


if __name__ == "__main__":
    main()
