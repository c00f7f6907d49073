"""Cost of error feedback: a round of EF21 against a round of gradient descent without compression.

    python -m benchmarks.feedback

Logistic regression on a9a (FEDSIM_DATA), 20 clients in one block, gradients of whole shards in float64, Top-1. The
methods take turns; for each the least processor time of a round is printed, and its ratio to that of gradient descent.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from algorithms import DCGD, EF14, EF21, EControl, EF21Plus
from fedsim.clients import cohort
from fedsim.compress import Identity, TopK
from fedsim.data import load
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.model import Model
from fedsim.problems import logistic_regression


def federation(data: str) -> Federation:
    """20 clients with the rows of a data set in the order of its file."""
    problem = logistic_regression(load(data), n=20, lam=0.1, regularizer="nonconvex")
    train = problem.dataset.train
    assert train.client is not None
    offsets = np.r_[0, np.cumsum(np.bincount(train.client))]
    model = Model(problem.module, problem.loss, problem.penalty, dtype=torch.float64)
    return Federation(model, Shards(train.x, train.y, offsets), LocalWork(0, steps=1), 0, Blocks(20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of each method; 30 by default")
    parser.add_argument("--data", default="a9a", help="a LIBSVM set; a9a by default")
    parser.add_argument("--threads", type=int, default=1, help="threads; 1 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fed = federation(arguments.data)
    top = TopK(k=1)
    methods: dict[str, Any] = {
        "gradient descent": DCGD(0.1, Identity()),
        "DCGD": DCGD(0.1, top),
        "EF14": EF14(0.1, top),
        "EF21": EF21(0.1, top),
        "EF21+": EF21Plus(0.1, top),
        "EControl": EControl(0.1, top),
    }
    states = {name: method.init(fed.model.vector(), cohort(fed, 0)) for name, method in methods.items()}
    best = dict.fromkeys(methods, float("inf"))
    for round in range(1, arguments.rounds + 1):
        for name, method in methods.items():
            start = time.process_time()
            states[name] = method.round(states[name], cohort(fed, round))
            best[name] = min(best[name], time.process_time() - start)
    for name, seconds in best.items():
        print(f"{name:18} {seconds * 1e3:6.1f} ms   {seconds / best['gradient descent']:.2f}")


if __name__ == "__main__":
    main()
