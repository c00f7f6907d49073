"""Question: with minibatches and messages of 1 % of the values, which compressed method trains a network best?

Data: MNIST, 10 clients, Dirichlet(0.1) label skew, an MLP 784-100-10 (79,510 parameters). In each of 200 rounds every
client takes the gradient of one minibatch of 32 samples, and the server one step: SGD on uncompressed gradients (DCGD
with the identity), DCGD, EF14, EF21-SGD, EF21-SGDM and EControl with Top-1 %. All choose their step size from the same
grid, so with equal budgets, by the accuracy on a fifth of every client's samples, withheld from training, on two seeds
(100 and 101); then they are run with all samples on three other, paired seeds.

Run: python -m experiments.minibatches (ten minutes of one core; --quick, on digits, half a minute). Expected: EF14
and EControl near SGD; EF21-SGD behind them, as the noise of minibatches is not averaged away, which EF21-SGDM mends;
DCGD last. The folder holds table.md and accuracy.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from algorithms import DCGD, EF14, EF21, EF21SGDM, EControl
from experiments.tuning import main_of
from fedsim import Data, Evaluation, Execution, Experiment, FixedSize, LocalWork
from fedsim.compress import Identity, TopK
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner

TOP = TopK(0.01)
STEPS = (0.01, 0.03, 0.1, 0.3, 1.0)
METHODS: dict[str, Callable[[float], Any]] = {
    "SGD": lambda lr: DCGD(lr, Identity(), "minibatch"),
    "DCGD": lambda lr: DCGD(lr, TOP, "minibatch"),
    "EF14": lambda lr: EF14(lr, TOP, gradient="minibatch"),
    "EF21-SGD": lambda lr: EF21(lr, TOP, gradient="minibatch"),
    "EF21-SGDM": lambda lr: EF21SGDM(lr, TOP, eta=0.1),
    "EControl": lambda lr: EControl(lr, TOP, gradient="minibatch"),
}
BASE = Experiment(
    DCGD(),
    data=Data("mnist"),
    partition=DirichletPartitioner(10, alpha=0.1, min_partition_size=50),
    model=MLP(hidden=(100,)),
    local=LocalWork(batch_size=32, steps=1),
    sampling=FixedSize(1.0),
    rounds=200,
    evaluation=Evaluation(every=20),
    execution=Execution("blocks", block_size=10, threads=1),   # a second thread costs such small matrices time
    seeds=3,
)
QUICK: dict[str, Any] = {
    "data": Data("digits"),
    "partition": DirichletPartitioner(5, alpha=0.3, min_partition_size=20),
    "rounds": 20,
    "seeds": 2,
}


def main(arguments: list[str] | None = None) -> int:
    """Choose, run, print the table and write the curves; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, 5 clients, 20 rounds, 2 seeds")
    parser.add_argument("--rounds", type=int, help="rounds of each run")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = {name: value for name in ("rounds", "seeds") if (value := getattr(options, name)) is not None}
    base = replace(BASE, **{**(QUICK if options.quick else {}), **given})
    grids = {name: [make(lr) for lr in STEPS] for name, make in METHODS.items()}
    return main_of("minibatches", grids, base, options.root)


if __name__ == "__main__":
    sys.exit(main())
