"""Question: on skewed data, what do clients lose who send a hundredth of their update, and which error feedback helps?

Data: FashionMNIST, 10 clients, Dirichlet(0.1) label skew, everybody in every round, an MLP 784-100-10 (79,510
parameters), 10 local steps with batches of 32, 200 rounds, 3 paired seeds. FedAvg and FedSpeed with lr 0.1, each as it
is, with Top-1 % without memory, and with Top-1 % in EF14, EF21 and EControl; the algorithms' files know nothing of it.
FedAvg also with both directions compressed: EF14 up and EF21-P down, each with Top-1 %. The step sizes are those of the
uncompressed methods.

Run: python -m experiments.compressed (34 minutes on two busy cores; --quick, on digits, seconds).
The folder of runs holds table.md and compressed.png, accuracy against megabytes sent up on a logarithmic axis. What was
measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table

from algorithms import FedAvg, FedSpeed
from experiments.pages import markdown
from fedsim import Data, Evaluation, Execution, Experiment, FixedSize, LocalWork, run
from fedsim.cli.output import console
from fedsim.compress import TopK
from fedsim.errors import FedsimError
from fedsim.feedback import EF21P, EControlUplink, EF14Uplink, EF21Uplink, Plain
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner
from fedsim.record.files import create_folder
from fedsim.report.compare import Comparison, compare, text_of
from fedsim.report.curves import curve_of
from fedsim.report.layout import PALETTE
from fedsim.report.series import AXES
from fedsim.report.statistics import estimate, first_reached

TOP = TopK(0.01)
BASE = Experiment(
    FedAvg(lr=0.1),
    data=Data("fashion_mnist"),
    partition=DirichletPartitioner(10, alpha=0.1, min_partition_size=50),
    model=MLP(hidden=(100,)),
    local=LocalWork(batch_size=32, steps=10),
    sampling=FixedSize(1.0),
    rounds=200,
    evaluation=Evaluation(every=10),
    seeds=3,
    execution=Execution(threads=1),   # a second thread costs such small matrices time
)
QUICK: dict[str, Any] = {
    "data": Data("digits"),
    "partition": DirichletPartitioner(5, alpha=0.3, min_partition_size=20),
    "rounds": 10,
    "seeds": 2,
    "evaluation": Evaluation(every=5),
}
UPLINKS = {
    "": None, "Top-1 %": Plain(TOP),
    "EF14": EF14Uplink(TOP), "EF21": EF21Uplink(TOP), "EControl": EControlUplink(TOP),
}  # fmt: skip


def experiments(base: Experiment) -> list[Experiment]:
    """All runs, with their names."""
    runs = [
        replace(base, algorithm=a, uplink=u).with_execution(name=f"{type(a).__name__} {name}".strip())
        for a in (FedAvg(lr=0.1), FedSpeed(lr=0.1, rho=0.05))
        for name, u in UPLINKS.items()
    ]
    both = replace(base, uplink=EF14Uplink(TOP), downlink=EF21P(TOP)).with_execution(name="FedAvg EF14, down EF21-P")
    return [*runs[:5], both, *runs[5:]]


def table(comparison: Comparison, target: float) -> list[list[str]]:
    """Header, then for each run: final accuracy, the difference to FedAvg with the same seeds, megabytes of all clients
    sent up and down, and sent up until the target is reached.
    """
    rows = [["run", "accuracy", "− FedAvg", "MB up", "MB down", f"MB up to {target:g}"]]
    for summary in comparison.runs:
        seeds = list(summary.run.seeds.values())
        reached = [first_reached(series.value, target, lower=False) for series in seeds]
        up = [series.cost["megabytes_up"] for series in seeds]
        down = [series.cost["megabytes"] - series.cost["megabytes_up"] for series in seeds]
        to_target = [float(cost[at]) for cost, at in zip(up, reached, strict=True) if at is not None]
        missed = len(reached) - len(to_target)
        rows.append([
            summary.run.label,
            text_of(summary.final),
            text_of(summary.difference, "baseline", "+"),
            *(f"{np.mean([cost[-1] for cost in costs]):.4g}" for costs in (up, down)),
            f"missed by {missed} of {len(reached)}" if missed else text_of(estimate(to_target)),
        ])  # fmt: skip
    return rows


def picture(comparison: Comparison, path: Path) -> None:
    """Accuracy against megabytes sent up, one panel for each algorithm; bands are 95 % Student-t intervals."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("FedAvg", "FedSpeed"), strict=True):
        runs = [summary.run for summary in comparison.runs if summary.run.label.startswith(name)]
        for run_of, color in zip(runs, PALETTE, strict=False):
            x, mean, half, _ = curve_of(run_of.seeds, "megabytes_up")
            axes.plot(x[1:], mean[1:], color=color, lw=1.6, label=run_of.label)        # nothing was sent before round 1
            if half is not None:
                axes.fill_between(x[1:], (mean - half)[1:], (mean + half)[1:], color=color, alpha=0.12, lw=0)
        axes.set(xscale="log", xlabel=AXES["megabytes_up"], title=name)
        axes.set_ylim(0.6 * min(s.final.mean for s in comparison.runs), min(1.0, 1.1 * axes.get_ylim()[1]))
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, loc="lower right", framealpha=0.9, edgecolor="none")
    figure.axes[0].set_ylabel(f"{comparison.metric}, {comparison.scope}")
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run all, print the table and write the curves; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, 5 clients, 10 rounds, 2 seeds")
    parser.add_argument("--rounds", type=int, help="rounds of each run")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--target", type=float, default=0.75, help="accuracy to reach (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = {name: value for name in ("rounds", "seeds") if (value := getattr(options, name)) is not None}
    base = replace(BASE, **{**(QUICK if options.quick else {}), **given})
    try:
        folder = create_folder(options.root, "compressed")
        runs = [run(experiment, root=folder) for experiment in experiments(base)]
        comparison = compare([r.path for r in runs], target=options.target)
        rows = table(comparison, options.target)
        (folder / "table.md").write_text(markdown(rows))
        shown = Table(*rows[0], box=SIMPLE)
        for row in rows[1:]:
            shown.add_row(*row)
        console().print(shown)
        picture(comparison, folder / "compressed.png")
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(f"Runs and curves: {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
