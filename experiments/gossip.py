"""Question: what does the topology cost decentralized training, and do several gossip steps buy it back?

Data: FashionMNIST, 36 nodes, Dirichlet(0.3) label skew, an MLP 784-64-10, 10 local steps of 32 samples, 60 rounds, 3
paired seeds, everybody in every round; on a ring, a 6 x 6 torus, the exponential and the complete graph, and with a
server. D-PSGD makes one step a round, with the mean of the 10 gradients. Step sizes are the best of {0.03, 0.1, 0.3}
(with momentum 0.9 {0.01, 0.03, 0.1, 0.3}, of D-PSGD {0.1, 0.3, 1}) and the radius of {0.01, 0.05, 0.1}, for each method
by accuracy of the average model on the torus, or of the server's, after 60 rounds on two other seeds (100 and 101). The
radius is at the grid's end: 0.003 gives DFedSAM 82.7 % instead of 82.6 %, and DFedAvg, the limit, 82.7 %.

Run: python -m experiments.gossip (about 10 minutes on two cores; --quick: half a minute, digits instead).
Expected by theory: for each method, the nodes' accuracy and consensus come in the order of lambda^Q, the ring worst and
the complete graph best; more gossip steps Q close the gap, at Q times the bytes; on the complete graph DFedAvg and
DFedSAM are FedAvg and FedSAM; no exchange leaves more of the consensus distance than lambda^Q; D-PSGD is slowest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from algorithms import DPSGD, DFedAvg, DFedSAM, FedAvg, FedSAM
from experiments.pages import markdown
from fedsim import Data, Evaluation, Execution, Experiment, FixedSize, LocalWork, run
from fedsim.cli.output import console
from fedsim.errors import FedsimError
from fedsim.models import MLP
from fedsim.partition import DirichletPartitioner
from fedsim.record.files import create_folder, write_atomic
from fedsim.report.compare import text_of
from fedsim.report.curves import curve_of
from fedsim.report.layout import PALETTE
from fedsim.report.series import RunSeries, load_runs
from fedsim.report.statistics import estimate
from topologies import Complete, Exponential, Ring, Static, Torus

SKEWED = DirichletPartitioner(36, alpha=0.3, min_partition_size=10)
BASE = Experiment(
    FedAvg(),
    data=Data("fashion_mnist"),
    partition=SKEWED,
    model=MLP(hidden=(64,)),
    local=LocalWork(batch_size=32, steps=10),
    sampling=FixedSize(1.0),
    rounds=60,
    seeds=3,
    evaluation=Evaluation(every=5),
    execution=Execution("blocks", block_size=36, threads=1),   # a second thread costs such small matrices time
)
QUICK = replace(BASE, data=Data(), rounds=10, seeds=2, partition=replace(SKEWED, num_partitions=9))
SERVER = {"FedAvg": FedAvg(lr=0.1), "FedSAM": FedSAM(lr=0.1, rho=0.01)}
GOSSIP = {
    "D-PSGD": DPSGD(lr=0.3),
    "DFedAvg": DFedAvg(lr=0.1),
    "DFedAvgM": DFedAvg(lr=0.1, momentum=0.9),
    "DFedSAM": DFedSAM(lr=0.1, rho=0.01),
    "DFedSAM-MGS, Q=2": DFedSAM(lr=0.1, rho=0.01, gossip_steps=2),
    "DFedSAM-MGS, Q=4": DFedSAM(lr=0.1, rho=0.01, gossip_steps=4),
}
GRAPHS = {"ring": Ring(), "torus": Torus(), "exponential": Exponential(), "complete": Complete()}
COLUMNS = {
    "average": [("average/test", "accuracy"), ("server/test", "accuracy")],
    "nodes": [("nodes/test", "accuracy_mean")],
    "worst 10 %": [("nodes/test", "accuracy_worst10")],
    "distance": [("nodes", "consensus_distance")],
    "left": [("nodes", "contraction")],
    "λ^Q": [("nodes", "contraction_bound")],
}
FACTORS = ("left", "λ^Q")
HEADER = ["method", "graph", *COLUMNS, "MB"]


class Job(NamedTuple):
    """A method on a graph, or with a server."""

    method: str
    graph: str
    experiment: Experiment


def jobs(base: Experiment) -> Iterator[Job]:
    """Every method on every graph, and those with a server."""
    for method, server in SERVER.items():
        yield Job(method, "server", replace(base, algorithm=server).with_execution(name=method))
    for graph, builder in GRAPHS.items():
        for method, gossip in GOSSIP.items():
            named = base.with_execution(name=f"{method.replace(', ', '-')}-{graph}")
            yield Job(method, graph, replace(named, algorithm=gossip, topology=Static(builder)))


def made(job: Job, folder: Path) -> Path:
    """Run a job in this process; returns its run directory."""
    return run(job.experiment, root=folder, progress=False).path


def all_made(todo: list[Job], folder: Path, processes: int) -> list[Path]:
    """Run all jobs, several at a time."""
    progress = {"description": "Runs", "console": Console(stderr=True)}
    if processes == 1:
        return [made(job, folder) for job in track(todo, **progress)]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        waiting = [pool.submit(made, job, folder) for job in todo]
        try:
            return [future.result() for future in track(waiting, **progress)]
        except BaseException:                              # what has not begun need not
            pool.shutdown(cancel_futures=True)
            raise


def cells(job: Job, run: RunSeries) -> list[str]:
    """A row of the table: means over seeds with their 95 % intervals."""
    seeds = list(run.seeds.values())
    row = [job.method, job.graph]
    for column, keys in COLUMNS.items():
        values = [s.last[key] for s in seeds for key in keys if key in s.last]
        if not values:
            row.append("–")                                # with a server there is one model
        elif column in FACTORS:
            row.append(f"{sum(values) / len(values):.3f}")
        else:
            row.append(text_of(estimate(values)))
    return [*row, f"{sum(s.cost['megabytes'][-1] for s in seeds) / len(seeds):,.1f}"]


def table(rows: list[list[str]], seeds: int) -> Table:
    """The results for the terminal."""
    title = f"After the last round, mean over {seeds} seeds ± 95 % Student-t interval"
    note = (
        "Test accuracy of the average model and of the nodes' own (mean, worst 10 %); consensus distance; what the last"
        " round's exchange left of it, and the bound; megabytes sent and received by all nodes"
    )
    shown = Table(*HEADER, title=title, caption=note, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(*row)
    return shown


def picture(results: list[tuple[Job, RunSeries]], path: Path) -> None:
    """Accuracy against megabytes, a panel for each graph: of the average model, and at the end of the nodes' own.

    Methods with a server are in every panel.
    """
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    best = max(s.value.max() for _, series in results for s in series.seeds.values())
    for axes, graph in zip(panels.flat, GRAPHS, strict=True):
        shown = [(job, series) for job, series in results if job.graph in (graph, "server")]
        for k, (job, series) in enumerate(shown):
            curve = curve_of(series.seeds, "megabytes")
            server = job.graph == "server"
            color, style = ("0.35", ("--", ":")[k]) if server else (PALETTE[k - len(SERVER)], "-")
            axes.plot(curve.x[1:], curve.mean[1:], color=color, ls=style, lw=1.6, label=job.method)
            if curve.half_width is not None:
                low, high = curve.mean - curve.half_width, curve.mean + curve.half_width
                axes.fill_between(curve.x[1:], low[1:], high[1:], color=color, alpha=0.12, lw=0)
            if not server:
                last = [s.last for s in series.seeds.values()]
                nodes, worst = (np.mean([s[COLUMNS[c][0]] for s in last]) for c in ("nodes", "worst 10 %"))
                axes.plot([curve.x[-1]] * 2, [nodes, worst], color=color, lw=1.2, marker="o", markevery=[0], ms=4)
        axes.set_title(graph, loc="left", fontsize=11, fontweight="bold")
        axes.set(xscale="log", ylim=(max(0.0, best - 0.3), best + 0.03))
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "megabytes sent and received by all nodes (1 MB = 10⁶ bytes)\nline and band: average model, or the server's,"
        " with its 95 % interval; dot: mean of the nodes' own models, and down to the worst 10 %",
        fontsize=9,
    )
    figure.supylabel("test accuracy", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Run everything, print the table, write table and curves; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="rounds of each run (default: 60)")
    parser.add_argument("--seeds", type=int, help="paired seeds (default: 3)")
    parser.add_argument("--nodes", type=int, help="number of nodes, not a prime (default: 36)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="digits, 9 nodes, 10 rounds, 2 seeds")
    options = parser.parse_args(arguments)
    base = QUICK if options.quick else BASE
    given = {"rounds": options.rounds, "seeds": options.seeds}
    if options.nodes is not None:
        given["partition"] = replace(SKEWED, num_partitions=options.nodes)
    base = replace(base, **{name: value for name, value in given.items() if value is not None})
    try:
        todo = list(jobs(base))
        folder = create_folder(options.root, "gossip")
        paths = all_made(todo, folder, options.processes)
        results = list(zip(todo, [load_runs([path], "server/test", "accuracy")[0] for path in paths], strict=True))
        rows = [cells(job, series) for job, series in results]
        console().print(table(rows, base.seeds))
        write_atomic(folder / "table.md", markdown([HEADER, *rows]))
        picture(results, folder / "accuracy-per-megabyte.png")
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(f"Runs, table and curves: {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
