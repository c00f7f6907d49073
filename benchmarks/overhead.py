"""Overhead of a round beside its gradients: sampling, batches, the algorithm's algebra, messages, ledger, recording.

    python -m benchmarks.overhead

Runs whole experiments (LeNet-5, 10 of 100 clients a round, 100 samples each in batches of 10) with few and with more
rounds. The difference of two runs is the cost of the rounds between, without set-up, evaluation and checkpoint. The
least share of several such pairs is printed, as neighbours on a shared machine disturb either run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import algorithms
from fedsim.api import run
from fedsim.data import Dataset, Split
from fedsim.engine.local_work import LocalWork
from fedsim.engine.model import Model
from fedsim.experiment.evaluation import Evaluation
from fedsim.experiment.execution import Execution
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.sampling import FixedSize
from fedsim.models import LeNet5
from fedsim.partition import IidPartitioner


class Stopwatch:
    """Seconds spent in the model's gradients."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, timed; parts of a gradient are computed before the first is given out."""

        def timed(*args: Any) -> Any:
            if self._inside:
                return method(*args)
            self._inside, start = True, time.perf_counter()
            g = method(*args)
            g = g if isinstance(g, Tensor) else list(g)
            self._inside, self.seconds = False, self.seconds + time.perf_counter() - start
            return g

        return timed


stopwatch = Stopwatch()


def timed_run(rounds: int, block_size: int) -> tuple[float, float]:
    """Seconds of an experiment, and of the gradients in it."""
    torch.manual_seed(0)
    split = Split(torch.randn(10_000, 1, 28, 28), torch.randint(0, 10, (10_000,)))
    experiment = Experiment(
        algorithms.FedAvg(),
        data=Dataset("random", split, Split(split.x[:100], split.y[:100]), 10),
        partition=IidPartitioner(100),
        model=LeNet5(),
        local=LocalWork(10),
        sampling=FixedSize(size=10),
        rounds=rounds,
        evaluation=Evaluation(every=rounds),
        execution=Execution("blocks" if block_size else "loop", block_size, "cpu", checkpoint_every=rounds),
    )
    with tempfile.TemporaryDirectory() as folder:
        before, start = stopwatch.seconds, time.perf_counter()
        run(experiment, root=Path(folder), progress=False)
        return time.perf_counter() - start, stopwatch.seconds - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="rounds between the two runs; 20 by default")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for each backend; 5 by default")
    parser.add_argument("--threads", type=int, default=2, help="threads; 2 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in ("gradient", "gradients", "gradient_parts"):
        setattr(Model, name, stopwatch.around(getattr(Model, name)))
    for block_size in (0, 1, 10):
        shares = []
        for _ in range(arguments.pairs):
            few, more = timed_run(2, block_size), timed_run(2 + arguments.rounds, block_size)
            rounds, gradients = more[0] - few[0], more[1] - few[1]
            shares.append((1 - gradients / rounds, rounds / arguments.rounds))
        share, seconds = min(shares)
        name = f"blocks {block_size}" if block_size else "loop"
        print(f"{name:10} {share:.1%} of a round of {seconds * 1e3:.1f} ms is not gradients", flush=True)


if __name__ == "__main__":
    main()
