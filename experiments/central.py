"""Question: which method with a server learns most on skewed data, each with its own step size, chosen fairly?

Data: FashionMNIST, 100 clients, Dirichlet(0.1) label skew, 10 clients a round, an MLP 784-100-10, one local epoch with
batches of 20, 100 rounds. Every method's settings are chosen from a grid by the accuracy on a fifth of every client's
samples, withheld from training, on two seeds (100 and 101); nobody looks at the test set. What was chosen is then run
with all samples on three other, paired seeds.

Run: python -m experiments.central (40 minutes on one core; --quick, on digits, half a minute). Expected: methods
that correct the drift of clients (SCAFFOLD, FedDyn, FedSpeed, FedCM) before FedAvg; FedProx and FedSAM like FedAvg.
The folder holds table.md and accuracy.png. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from algorithms import FedAMD, FedAvg, FedCM, FedOpt, FedProx, FedSAM, FedSpeed, Scaffold
from experiments.tuning import main_of
from fedsim import Data, Evaluation, Execution, Experiment, FixedSize, LocalWork
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner

STEPS = (0.03, 0.1, 0.3, 1.0)
GRIDS: dict[str, Sequence[Any]] = {
    "FedAvg": [FedAvg(lr=lr) for lr in STEPS],
    "FedProx": [FedProx(lr=lr, mu=mu) for lr in STEPS for mu in (0.01, 0.1)],
    "FedSAM": [FedSAM(lr=lr, rho=rho) for lr in STEPS for rho in (0.01, 0.05)],
    "SCAFFOLD": [Scaffold(lr=lr) for lr in (0.01, *STEPS)],
    "FedAdam": [FedOpt(lr=lr, server_lr=server) for lr in STEPS[:3] for server in (0.003, 0.01, 0.03)],
    "FedCM": [FedCM(lr=lr, alpha=alpha) for lr in STEPS for alpha in (0.05, 0.2)],
    "FedDyn": [FedSpeed(lr=lr, rho=0.0, lam=lam) for lr in STEPS for lam in (10.0, 100.0)],
    "FedSpeed": [FedSpeed(lr=lr, rho=0.05, lam=lam) for lr in STEPS for lam in (10.0, 100.0)],
    "FedAMD": [FedAMD(lr=lr) for lr in (0.001, 0.003, 0.01, 0.03, 0.1)],
}
BASE = Experiment(
    FedAvg(),
    data=Data("fashion_mnist"),
    partition=DirichletPartitioner(100, alpha=0.1, min_partition_size=20),
    model=MLP(hidden=(100,)),
    local=LocalWork(batch_size=20, epochs=1),
    sampling=FixedSize(0.1),
    rounds=100,
    evaluation=Evaluation(every=5),
    execution=Execution("blocks", block_size=10, threads=1),   # a second thread costs such small matrices time
    seeds=3,
)
QUICK: dict[str, Any] = {
    "data": Data("digits"),
    "partition": DirichletPartitioner(20, alpha=0.1, min_partition_size=10),
    "rounds": 10,
    "seeds": 2,
}

def main(arguments: list[str] | None = None) -> int:
    """Choose, run, print the table and write the curves; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, 20 clients, 10 rounds, 2 seeds")
    parser.add_argument("--rounds", type=int, help="rounds of each run")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=[*GRIDS], help="all by default")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = {name: value for name in ("rounds", "seeds") if (value := getattr(options, name)) is not None}
    base = replace(BASE, **{**(QUICK if options.quick else {}), **given})
    return main_of("central", {name: GRIDS[name] for name in options.methods}, base, options.root)


if __name__ == "__main__":
    sys.exit(main())
