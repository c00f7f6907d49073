"""Question: when are nodes that exchange over slow links sooner done than with a server whose line is thin?

Data: digits, 32 nodes, Dirichlet(0.3) label skew, an MLP 64-64-10, 10 local steps with batches of 16, lr 0.1. All nodes
have lines of 2 Mbit/s in both directions and a latency of 50 ms, and compute a task in 1.6 s in the median (log-normal,
spread 0.5). FedAvg calls all of them, or 8, and its server has a line that all share; DFedAvg exchanges on a torus, or
with one peer at a time of an exponential graph. 60 rounds (FedAvg with 8 clients 120), 3 paired seeds.

Run: python -m experiments.thin_server (a minute of one core; --seeds 1 --rounds 4, seconds).
The folder of runs holds table.md and a picture. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from algorithms import DFedAvg, FedAvg
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
    read_metrics,
    run,
)
from fedsim.report.compare import text_of
from fedsim.report.layout import PALETTE
from fedsim.report.statistics import Estimate, estimate
from topologies import OnePeerExponential, Static, Torus

LINE = 2e6
"""Bit/s of a node, in both directions."""
SERVERS = {"2 Mbit/s": 2e6, "10 Mbit/s": 1e7, "100 Mbit/s": 1e8, "unlimited": None}
"""Bit/s of the server's line, in both directions."""
BASE = Experiment(
    FedAvg(lr=0.1),
    partition=DirichletPartitioner(32, alpha=0.3, min_partition_size=5),
    model=MLP(hidden=(64,)),
    local=LocalWork(batch_size=16, steps=10),
    sampling=FixedSize(fraction=1.0),
    rounds=60,
    seeds=3,
    evaluation=Evaluation(every=1, clients_every=None),
    clock=Clock(seconds=LogNormal(0.01, 0.5), bandwidth_down=LINE, up_share=1.0, jitter=0.1),
    execution=Execution("blocks", block_size=8, threads=1),
)
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg, all": {},
    "FedAvg, 8 a round": {"sampling": FixedSize(size=8)},
    "DFedAvg, torus": {"algorithm": DFedAvg(lr=0.1), "topology": Static(Torus())},
    "DFedAvg, one peer": {"algorithm": DFedAvg(lr=0.1), "topology": OnePeerExponential()},
}


def experiment(base: Experiment, method: str, server: float | None) -> Experiment:
    """A method, and the bandwidth of its server."""
    made = replace(base, clock=replace(base.clock, server_up=server, server_down=server), **METHODS[method])  # type: ignore[type-var]
    return replace(made, rounds=base.rounds * (1 + (method == "FedAvg, 8 a round")))


def to_target(made: Experiment, folder: Path, target: float) -> tuple[Estimate | None, float]:
    """Simulated seconds to the target, None if a seed misses it, and of a round."""
    path, times, each = run(made, root=folder).path, list[float](), list[float]()
    scope = "server/test" if made.topology is None else "average/test"
    for seed in made.seed_list:
        rows = read_metrics(path / f"seed-{seed}" / "metrics.jsonl")
        seconds, accuracy = rows.series("simulated", "seconds"), rows.series(scope, "accuracy")
        times += [seconds[t] for t in sorted(seconds) if accuracy[t] >= target][:1]
        each.append(seconds[made.rounds] / made.rounds)
    return estimate(times) if len(times) == made.seeds else None, sum(each) / len(each)


def table(base: Experiment, folder: Path, target: float) -> tuple[list[list[str]], dict[str, list[float]]]:
    """Rows of the table, and the mean seconds to the target by method and server; NaN where a seed missed it."""
    heads = [f"seconds to {target:g}, {name}" for name in SERVERS]
    rows, means = [["method", *heads, "s a round, thinnest"]], dict[str, list[float]]()
    for method, settings in METHODS.items():
        lines = SERVERS if "topology" not in settings else {"unlimited": None}
        found = [to_target(experiment(base, method, speed), folder, target) for speed in lines.values()]
        found *= len(SERVERS) // len(found)                # nodes without a server do not depend on one
        texts = [text_of(seconds, "missed") for seconds, _ in found]
        rows.append([method, *texts, f"{found[0][1]:.2f}"])
        means[method] = [float("nan") if seconds is None else seconds.mean for seconds, _ in found]
    return rows, means


def picture(means: dict[str, list[float]], target: float, path: Path) -> None:
    """Mean seconds to the target against the server's line; those without a server are level lines."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (method, seconds), color in zip(means.items(), PALETTE, strict=False):
        style = "-" if method.startswith("FedAvg") else "--"
        axes.plot(list(SERVERS), seconds, color=color, ls=style, lw=1.6, marker="o", ms=4, label=method)
    axes.set(xlabel="line of the server", ylabel=f"simulated seconds to accuracy {target:g}")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run all and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="rounds of each run")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--target", type=float, default=0.8, help="accuracy to reach (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = {name: value for name in ("rounds", "seeds") if (value := getattr(options, name)) is not None}

    def measure(folder: Path) -> list[list[str]]:
        rows, means = table(replace(BASE, **given), folder, options.target)
        picture(means, options.target, folder / "thin_server.png")
        return rows

    return write_table(options.root, "thin-server", measure)


if __name__ == "__main__":
    sys.exit(main())
