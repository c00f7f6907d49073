"""Question: what is a personal model worth, to clients that train and to newcomers, beside fine-tuning the common one?

Digits by label skew (MNIST, 20 clients, Dirichlet 0.1) and sensors by subject (UCI HAR, 30 clients); the last fifth of
the clients never trains. A hidden layer of 64 with layer normalisation, 4 in 10 clients a round, 10 steps of 32,
40 rounds. Accuracy on each client's own withheld samples: of the server's model, of the client's own (FedAvg has none),
after 20 steps of fine-tuning, and of newcomers before and after those. Expected: fine-tuning makes up most of what
FedAvg lacks; layers that stay are better than the server's model where labels are skewed, and leave newcomers a model
without a trained head.

Run: python -m experiments.personal (2 minutes of one core; --quick, 2 rounds of one seed).
The folder of runs holds table.md and personal.png. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from algorithms import Ditto, FedAvg, PerFedAvg
from experiments.pages import intervals, write_table
from fedsim import (
    Data,
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    NaturalIdPartitioner,
    Share,
    read_metrics,
    run,
)
from fedsim.report.compare import text_of
from fedsim.report.statistics import Estimate, estimate

LR, HEAD = 0.1, "4"
MODELS = {
    "server": "clients",
    "own": "personal",
    "tuned": "tuned",
    "new": "unseen",
    "new, tuned": "unseen_tuned",
}
"""Models that are measured, and the scopes of their values."""


@dataclass(frozen=True)
class Normed:
    """One hidden layer with layer normalisation."""

    width: int = 64

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """See ``fedsim.models.Architecture``."""
        layers = nn.Linear(prod(input_shape), self.width), nn.LayerNorm(self.width), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(self.width, classes))


METHODS: dict[str, tuple[Any, Share]] = {
    "FedAvg": (FedAvg(lr=LR), Share()),
    "FedPer": (FedAvg(lr=LR), Share(f"all but {HEAD}")),
    "FedRep": (FedAvg(lr=LR), Share(f"all but {HEAD}", "alternate")),
    "FedBABU": (FedAvg(lr=LR), Share(f"all but {HEAD}", "frozen")),
    "FedBN": (FedAvg(lr=LR), Share("all but LayerNorm")),
    "Ditto": (Ditto(lr=LR, lam=0.5), Share()),
    "Per-FedAvg": (PerFedAvg(lr=LR, alpha=LR), Share()),
}
TASKS = {
    "MNIST by label": (Data("mnist"), DirichletPartitioner(20, alpha=0.1, min_partition_size=50)),
    "UCI HAR by subject": (Data("uci_har"), NaturalIdPartitioner()),
}
BASE = Experiment(
    FedAvg(lr=LR),
    model=Normed(),
    local=LocalWork(batch_size=32, steps=10),
    sampling=FixedSize(0.4),
    rounds=40,
    seeds=3,
    evaluation=Evaluation(every=40, holdout=0.2, fine_tune=20, unseen=0.2),
    execution=Execution("blocks", block_size=8, threads=1),
)


def measured(path: Path, seeds: list[int], rounds: int, scope: str, metric: str) -> Estimate | None:
    """A value after the last round; None where the method has no such model."""
    found = [read_metrics(path / f"seed-{s}" / "metrics.jsonl").series(scope, metric).get(rounds) for s in seeds]
    return None if None in found else estimate([value for value in found if value is not None])


def table(base: Experiment, folder: Path) -> tuple[list[list[str]], dict[str, dict[str, dict[str, Estimate]]]]:
    """Rows of the table, and the means by task, method and model."""
    rows = [["data", "method", *MODELS, "worst tenth, own", "MB"]]
    means: dict[str, dict[str, dict[str, Estimate]]] = {}
    for task, (data, partition) in TASKS.items():
        for method, (algorithm, share) in METHODS.items():
            case = replace(base, algorithm=algorithm, share=share, data=data, partition=partition)
            name = f"{method}-{task}".replace(" ", "-").lower()
            path = run(case.with_execution(name=name), root=folder / "runs").path
            of = case.seed_list, case.rounds
            found = {m: measured(path, *of, f"{scope}/holdout", "accuracy_mean") for m, scope in MODELS.items()}
            known = {m: value or found["server"] for m, value in found.items()}
            means.setdefault(task, {})[method] = {m: value for m, value in known.items() if value is not None}
            scope = "clients" if found["own"] is None else "personal"
            worst = measured(path, *of, f"{scope}/holdout", "accuracy_worst10")
            sent = [measured(path, *of, "total", f"bytes_{way}") for way in ("up", "down")]
            size = sum(value.mean for value in sent if value is not None) / 1e6
            values = [*(found[m] for m in MODELS), worst]
            rows.append([task, method, *("–" if v is None else text_of(v) for v in values), f"{size:.1f}"])
    return rows, means


def main(arguments: list[str] | None = None) -> int:
    """Run all, print the table and draw it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds of one seed")
    parser.add_argument("--rounds", type=int, help="rounds of every method")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    base = replace(BASE, rounds=2, seeds=1) if options.quick else BASE
    given = {name: value for name in ("rounds", "seeds") if (value := getattr(options, name)) is not None}

    def measure(folder: Path) -> list[list[str]]:
        rows, means = table(replace(base, **given), folder)
        intervals(means, "accuracy on own samples, mean of clients", folder / "personal.png")
        return rows

    return write_table(options.root, "personal", measure)


if __name__ == "__main__":
    sys.exit(main())
