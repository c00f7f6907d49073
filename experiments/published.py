"""Question: do the published accuracies of ten methods on CIFAR-10, and their order, come out again?

The table is that of the README of FL-Simulator (github.com/woodenchild95/FL-Simulator, commit 502bec65), code of the
authors of FedSpeed and FedSMOO: CIFAR-10, ResNet-18 with GroupNorm, 1000 rounds of 5 local epochs; set-up A is 10 % of
100 clients with batches of 50, B 5 % of 200 clients with batches of 25; IID, or a Dirichlet prior of classes for every
client (0.6, 0.3, 0.1). As in that code, clients take part independently of one another, class pools are refilled when
they run out, weight decay 1e-3 and clipping at 10 act on the step, step sizes decay in every round, pictures are
flipped with probability 1/2 and, independently, cropped with probability 1/2 after padding by 4, and the figure is the
BEST test accuracy over rounds. Where the README gives two values of a setting, the first is meant. Its FedSMOO row was
made with code that had an error, which was mended later; its authors report differences of 0.4 between re-runs.

Run: python -m experiments.published --methods FedAvg FedSpeed --setup A --split 0.6 (one cell for each method). A
second call goes on where the first one stopped. Times: --predict makes two rounds of each cell and says how long all of
them will take here; on a V100 that code took 4.4 hours (FedAvg) to 8.5 hours (FedSMOO) a cell of set-up A. For two
cores: --scale small has LeNet-5, one local epoch, 100 rounds and 3 seeds, with which the order of the methods can be
compared, their accuracies cannot. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from scipy.stats import kendalltau

from algorithms import FedAvg, FedCM, FedGamma, FedOpt, FedProx, FedSMOO, FedSpeed, MoFedSAM, Scaffold
from experiments.pages import markdown
from fedsim import CropAndFlip, Data, Evaluation, Execution, Experiment, LocalWork, compare, resume, run
from fedsim.cli.output import console
from fedsim.errors import FedsimError
from fedsim.experiment.sampling import Bernoulli
from fedsim.experiment.schedule import ExponentialDecay
from fedsim.models import MLP, LeNet5, ResNet18
from fedsim.partition import ClientDirichletPartitioner, IidPartitioner
from fedsim.record.directory import RunDirectory
from fedsim.report.compare import Comparison
from fedsim.report.statistics import Estimate

SPLITS = ("IID", "0.6", "0.3", "0.1")
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {     # best test accuracy in %, in the order of SPLITS
    "FedAvg": {"A": (82.52, 80.65, 79.75, 77.31), "B": (81.09, 79.93, 78.66, 75.21)},
    "FedProx": {"A": (82.54, 81.05, 79.52, 76.86), "B": (81.56, 79.49, 78.76, 75.84)},
    "FedAdam": {"A": (84.32, 82.56, 82.12, 77.58), "B": (83.29, 81.22, 80.22, 75.83)},
    "SCAFFOLD": {"A": (84.88, 83.53, 82.75, 79.92), "B": (84.24, 83.01, 82.04, 78.23)},
    "FedDyn": {"A": (85.46, 84.22, 83.22, 78.96), "B": (81.11, 80.25, 79.43, 75.43)},
    "FedCM": {"A": (85.74, 83.81, 83.44, 78.92), "B": (83.77, 82.01, 80.77, 75.91)},
    "FedGamma": {"A": (85.74, 84.80, 83.81, 80.72), "B": (84.99, 84.02, 83.03, 80.09)},
    "MoFedSAM": {"A": (87.24, 85.74, 85.14, 81.58), "B": (86.27, 84.71, 83.44, 79.02)},
    "FedSpeed": {"A": (87.31, 86.33, 85.39, 82.26), "B": (86.87, 85.07, 83.94, 79.66)},
    "FedSMOO": {"A": (87.70, 86.87, 86.04, 83.30), "B": (87.40, 85.97, 85.14, 81.35)},
}
SETTINGS: dict[str, tuple[Any, float]] = {                 # and the decay of the step size in a round
    "FedAvg": (FedAvg(lr=0.1), 0.998),
    "FedProx": (FedProx(lr=0.1, mu=0.1), 0.998),
    "FedAdam": (FedOpt(lr=0.1, server_lr=0.1, beta1=0.9, beta2=0.99, tau=0.01, v0=0.0), 0.998),
    "SCAFFOLD": (Scaffold(lr=0.1), 0.998),
    "FedDyn": (FedSpeed(lr=0.1, rho=0.0, lam=10.0), 0.9995),
    "FedCM": (FedCM(lr=0.1, alpha=0.1), 0.998),
    "FedGamma": (FedGamma(lr=0.1, rho=0.01), 0.998),
    "MoFedSAM": (MoFedSAM(lr=0.1, rho=0.1, alpha=0.05), 0.998),
    "FedSpeed": (FedSpeed(lr=0.1, rho=0.1, lam=10.0), 0.998),
    "FedSMOO": (FedSMOO(lr=0.1, rho=0.1, lam=10.0), 0.998),
}
CLIENTS: dict[str, tuple[int, float, int]] = {"A": (100, 0.1, 50), "B": (200, 0.05, 25)}
"""Number of clients, share that takes part, and batch size."""

STEP = LocalWork(
    weight_decay=1e-3, clip_norm=10.0, weight_decay_mode="step", clip_mode="direction",
    augment=CropAndFlip(padding=4, crop=0.5, flip=0.5),
)  # fmt: skip
SCALES: dict[str, dict[str, Any]] = {
    "full": {"model": ResNet18(stem="imagenet", groups=2), "epochs": 5, "rounds": 1000, "seeds": 1, "every": 1},
    "small": {"model": LeNet5(), "epochs": 1, "rounds": 100, "seeds": 3, "every": 10},
    "quick": {"model": MLP((16,)), "epochs": 1, "rounds": 10, "seeds": 2, "every": 2},   # on digits, to try the script
}


def experiment(method: str, setup: str, split: str, scale: str, rounds: int | None, seeds: int | None) -> Experiment:
    """One cell of the table."""
    size, (clients, share, batch) = SCALES[scale], CLIENTS[setup]
    algorithm, decay = SETTINGS[method]
    return Experiment(
        algorithm,
        data=Data("digits" if scale == "quick" else "cifar10"),
        partition=IidPartitioner(clients) if split == "IID" else ClientDirichletPartitioner(clients, float(split)),
        model=size["model"],
        local=replace(STEP, batch_size=batch, epochs=size["epochs"]),
        sampling=Bernoulli(share),
        schedule=ExponentialDecay(decay),
        rounds=rounds or size["rounds"],
        seeds=seeds or size["seeds"],
        evaluation=Evaluation(every=size["every"], clients_every=None),
        execution=Execution(name=method, threads=1 if scale != "full" else None),
    )


def made(cell: Experiment, folder: Path) -> RunDirectory:
    """The run of a cell: new, continued, or as it was finished."""
    there = folder / cell.title
    return resume(there, cell) if (there / "manifest.json").exists() else run(cell, output=there)


def seconds(cell: Experiment) -> float:
    """Predicted seconds of a cell, by the second of two rounds of it; the first one has to warm up."""
    short = replace(cell, rounds=2, seeds=1, evaluation=replace(cell.evaluation, every=1))
    with tempfile.TemporaryDirectory() as folder:
        lines = (run(short, root=folder, progress=False).seed_path(cell.seed) / "timing.jsonl").read_text().splitlines()
    *_, before, last = (row["value"] for row in map(json.loads, lines) if row["metric"] == "seconds")
    return float(last - before) * cell.rounds * cell.seeds


def percent(value: Estimate | None) -> str:
    """A share as a percentage with its 95 % interval."""
    if value is None:
        return "–"
    return f"{100 * value.mean:.2f}" + ("" if value.half_width is None else f" ± {100 * value.half_width:.2f}")


def table(comparison: Comparison, setup: str, split: str) -> list[list[str]]:
    """Header, then for each method: our accuracy at best and of the last evaluations in %, the published one, the
    difference, and the ranks of both among the methods shown.
    """
    theirs = {s.run.label: PUBLISHED[s.run.label][setup][SPLITS.index(split)] for s in comparison.runs}
    ours = {s.run.label: 100 * s.best.mean for s in comparison.runs}
    rows = [["method", "ours, best", "ours, last 5", "published, best", "difference", "rank", "published rank"]]
    for summary in comparison.runs:
        name = summary.run.label
        rows.append([
            name,
            percent(summary.best),
            percent(summary.late),
            f"{theirs[name]:.2f}",
            f"{ours[name] - theirs[name]:+.2f}",
            *(str(1 + sum(other > values[name] for other in values.values())) for values in (ours, theirs)),
        ])  # fmt: skip
    return rows


def agreement(rows: Sequence[Sequence[str]]) -> str:
    """Kendall's tau of our order and the published one."""
    found = kendalltau([int(row[-2]) for row in rows[1:]], [int(row[-1]) for row in rows[1:]])
    return f"Kendall's tau of the two orders: {found.statistic:.2f} (p = {found.pvalue:.2g}; 1 where they are equal)"


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not there yet, and print ours beside the published values; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=PUBLISHED, default=[*PUBLISHED], help="all by default")
    parser.add_argument("--setup", choices=CLIENTS, default="A", help="100 or 200 clients (default: %(default)s)")
    parser.add_argument("--split", choices=SPLITS, nargs="+", default=["0.3"], help="(default: 0.3)")
    parser.add_argument("--scale", choices=SCALES, default="full", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds of each run")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--predict", action="store_true", help="only say how long it will take")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    out = console()
    try:
        for split in options.split:
            size = options.scale, options.rounds, options.seeds
            cells = [experiment(method, options.setup, split, *size) for method in options.methods]
            if options.predict:
                hours = {cell.title: seconds(cell) / 3600 for cell in cells}
                out.print(f"{split}: {sum(hours.values()):.3g} hours, {hours}", highlight=False)
                continue
            folder = options.root / f"published-{options.scale}-{options.setup}-{split}"
            comparison = compare([made(cell, folder).path for cell in cells])
            rows = table(comparison, options.setup, split)
            (folder / "table.md").write_text(markdown(rows))
            shown = Table(*rows[0], box=SIMPLE, title=f"set-up {options.setup}, {split}, scale {options.scale}")
            for row in rows[1:]:
                shown.add_row(*row)
            out.print(shown)
            if len(rows) > 2:
                out.print(agreement(rows), highlight=False)
            out.print(f"Runs and table: {folder}", highlight=False)
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
