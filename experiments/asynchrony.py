"""Question: how many simulated seconds does a server save that does not wait for its slowest client?

Data: digits, 50 clients, Dirichlet(0.3) label skew, an MLP 64-64-10, 10 local steps with batches of 16, lr 0.1. FedAvg
waits for 10 clients a round, for the first 10 of 13, the same with clients that Oort chooses, or until 3 s have passed
and 3 have arrived; FedBuff (buffer 5) and FedAsync (alpha 0.6, polynomial) have 10 under way. Compute times are
log-normal over clients with a median of 1.6 s for a task; the spread is the standard deviation of their logarithm.
Lines of 6 Mbit/s, half of it up; 40 rounds, or 400 tasks, in every run, 3 paired seeds.

Run: python -m experiments.asynchrony (3 minutes of one core; --seeds 1 --tasks 40, seconds).
The folder of runs holds table.md and a picture. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from algorithms import FedAsync, FedAvg, FedBuff
from experiments.pages import write_table
from fedsim import (
    MLP,
    Clock,
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    LogNormal,
    Oort,
    Waiting,
    compare,
    run,
)
from fedsim.report.compare import text_of
from fedsim.report.layout import PALETTE

Means: TypeAlias = dict[str, dict[float, float]]
"""By method and spread."""
SPREADS = (0.0, 0.5, 1.0, 1.5)
AT_A_TIME = 10
BASE = Experiment(
    FedAvg(lr=0.1),
    partition=DirichletPartitioner(50, alpha=0.3, min_partition_size=5),
    model=MLP(hidden=(64,)),
    local=LocalWork(batch_size=16, steps=10),
    sampling=FixedSize(size=AT_A_TIME),
    seeds=3,
    execution=Execution("loop", threads=1),
)
FIRST = Waiting(first=AT_A_TIME)
METHODS: dict[str, tuple[int, dict[str, Any]]] = {         # the messages in a server step, and settings
    "FedAvg": (AT_A_TIME, {}),
    "FedAvg, first 10 of 13": (AT_A_TIME, {"sampling": FixedSize(size=13), "waiting": FIRST}),
    "FedAvg, first 10 of Oort's 13": (AT_A_TIME, {"sampling": Oort(size=13), "waiting": FIRST}),
    "FedAvg, 3 s": (AT_A_TIME, {"waiting": Waiting(deadline=3, minimum=3)}),
    "FedBuff": (5, {"algorithm": FedBuff(lr=0.1, buffer=5), "concurrency": AT_A_TIME}),
    "FedAsync": (1, {"algorithm": FedAsync(lr=0.1), "concurrency": AT_A_TIME}),
}


def experiment(base: Experiment, method: str, spread: float, tasks: int) -> Experiment:
    """A method on clients of some spread, evaluated after every 20 messages."""
    messages, settings = METHODS[method]
    name = "".join(letter for letter in method if letter.isalnum() or letter == " ").replace(" ", "-")
    return replace(
        base,
        rounds=tasks // messages,
        evaluation=Evaluation(every=20 // messages, clients_every=None),
        clock=Clock(seconds=LogNormal(0.01, spread), bandwidth_down=6e6, jitter=0.1),
        **settings,
    ).with_execution(name=f"{name}-{spread:g}")


def table(base: Experiment, folder: Path, tasks: int, target: float) -> tuple[list[list[str]], Means]:
    """Simulated seconds of all tasks, to the target, and final accuracy, for each method and spread; and the mean
    seconds to the target of each method, where all seeds reached it.
    """
    means: Means = {method: {} for method in METHODS}
    rows = [["spread", "method", f"seconds to {target:g}", "seconds in all", "final accuracy", "− FedAvg"]]
    for spread in SPREADS:
        paths = [run(experiment(base, method, spread, tasks), root=folder).path for method in METHODS]
        comparison = compare(paths, target=target)
        for method, summary in zip(METHODS, comparison.runs, strict=True):
            missed = f"missed by {len(summary.run.seeds) - summary.reached} of {len(summary.run.seeds)}"
            if (reached := summary.cost["simulated_seconds"]) is not None:
                means[method][spread] = reached.mean
            last = [series.cost["simulated_seconds"][-1] for series in summary.run.seeds.values()]
            rows.append([
                f"{spread:g}",
                method,
                text_of(summary.cost["simulated_seconds"], missed),
                f"{sum(last) / len(last):,.0f}",
                text_of(summary.final),
                text_of(summary.difference, "baseline", "+"),
            ])  # fmt: skip
    return rows, means


def picture(means: Means, target: float, path: Path) -> None:
    """Mean seconds to the target against the spread, a line for each method."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (method, found), color in zip(means.items(), PALETTE, strict=False):
        axes.plot(list(found), list(found.values()), color=color, lw=1.6, marker="o", ms=4, label=method)
    axes.set(xlabel="spread of compute times over clients", ylabel=f"simulated seconds to accuracy {target:g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(SPREADS)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run all and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=400, help="messages in each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--target", type=float, default=0.8, help="accuracy to reach (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    base = BASE if options.seeds is None else replace(BASE, seeds=options.seeds)

    def measure(folder: Path) -> list[list[str]]:
        rows, means = table(base, folder, options.tasks, options.target)
        picture(means, options.target, folder / "asynchrony.png")
        return rows

    return write_table(options.root, "asynchrony", measure)


if __name__ == "__main__":
    sys.exit(main())
