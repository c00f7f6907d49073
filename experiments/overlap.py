"""Question: what is communication behind local work worth, in simulated seconds, and what does its delay cost?

A character model on the plays of Shakespeare (LSTM of 64, 8 workers with the roles divided among them, SGD with batches
of 16): the loss that each method has after the same simulated seconds, over lines of 10 Mbit/s and of 1 Gbit/s, and the
words that 1 to 64 workers process in a second if their compute times vary by 10 %. A step takes 10 ms, a message 2 ms
more than its bytes; local methods make 8 steps a round. The server stands for an all-reduce whose time does not grow
with the workers, as a ring's.

Run: python -m experiments.overlap (4 minutes of one core; --quick, 2 rounds of 2 workers).
The folder of runs holds loss.md, scaling.md and overlap.png. What was measured is in experiments/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from algorithms import CO2, CoCoDSGD, DiLoCo, FedAvg, NoLoCo, OverlapSGD, SlowMo, StreamingDiLoCo
from experiments.pages import markdown
from fedsim import (
    CharLSTM,
    Clock,
    Data,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    GroupedNaturalIdPartitioner,
    LocalWork,
    read_metrics,
    run,
)
from fedsim.algorithm import has_server
from fedsim.cli.output import console
from fedsim.clock.virtual import VirtualClock
from fedsim.errors import FedsimError
from fedsim.messages.trace import Computed, Uploaded
from fedsim.record.directory import RunDirectory
from fedsim.record.files import create_folder
from fedsim.report.compare import text_of
from fedsim.report.layout import PALETTE
from fedsim.report.statistics import Estimate, estimate
from topologies import RandomMatching

STEPS, BATCH, LENGTH = 8, 16, 40
LINES = {"10 Mbit/s": 1e7, "1 Gbit/s": 1e9}
WORKERS = (1, 2, 4, 8, 16, 32, 64)
COLORS = (*PALETTE, "0.5", "#882255")
LR = 1.0
Curves: TypeAlias = dict[str, dict[str, list[tuple[float, float]]]]


def clock(line: float, jitter: float = 0.0) -> Clock:
    """Workers that make a step in 10 ms."""
    return Clock(seconds=0.01 / BATCH, bandwidth_down=line, up_share=1.0, latency=0.002, jitter=jitter)


BASE = Experiment(
    FedAvg(lr=LR),
    data=Data("shakespeare", options={"sequence_length": LENGTH}),
    partition=GroupedNaturalIdPartitioner(num_partitions=8),
    model=CharLSTM(embedding=8, hidden=64, layers=1),
    local=LocalWork(batch_size=BATCH, steps=STEPS),
    sampling=FixedSize(1.0),
    rounds=40,
    seeds=3,
    evaluation=Evaluation(every=8, clients_every=None),
    clock=clock(LINES["10 Mbit/s"]),
    execution=Execution("loop", threads=1),
)
METHODS: dict[str, Any] = {
    "SGD, every step": FedAvg(lr=LR),
    "Local SGD": FedAvg(lr=LR),
    "SlowMo": SlowMo(lr=LR, outer_momentum=0.5),
    "DiLoCo": DiLoCo(lr=LR, outer_lr=0.7, outer_momentum=0.5),
    "Streaming DiLoCo": StreamingDiLoCo(lr=LR, outer_momentum=0.5, fragments=3, overlap=0.25),
    "NoLoCo": NoLoCo(lr=LR, outer_lr=0.7, outer_momentum=0.5),
    "Overlap-Local-SGD": OverlapSGD(lr=LR, momentum=0.0),
    "CoCoD-SGD": CoCoDSGD(lr=LR),
    "CO2": CO2(lr=LR),
}


def of(base: Experiment, method: str) -> Experiment:
    """The experiment of a method; with SGD a round is one step, and there are as many times more. Without a server the
    workers pair up anew in every round.
    """
    algorithm = METHODS[method]
    chosen = replace(base, algorithm=algorithm, topology=None if has_server(algorithm) else RandomMatching())
    if method.startswith("SGD"):
        evaluation = replace(base.evaluation, every=5 * base.evaluation.every // 2)
        chosen = replace(chosen, local=replace(base.local, steps=1), rounds=6 * base.rounds, evaluation=evaluation)
    return chosen.with_execution(name=method.replace(",", "").replace(" ", "-").lower())


def series(path: Path, seed: int, scope: str, metric: str) -> dict[int, float]:
    return read_metrics(path / f"seed-{seed}" / "metrics.jsonl").series(scope, metric)


def seconds_a_round(experiment: Experiment, folder: Path, line: float) -> float:
    """Simulated seconds of a round once all is under way, from a run of a few."""
    evaluation = Evaluation(every=3, clients_every=None)
    few = replace(experiment, rounds=6, seeds=1, evaluation=evaluation, clock=clock(line))
    at = series(run(few, root=folder, progress=False).path, few.seed, "simulated", "seconds")
    return (at[6] - at[3]) / 3


def losses(base: Experiment, folder: Path) -> tuple[list[list[str]], Curves, int]:
    """Rows of the table, for each line and method points (seconds, mean loss), and the bytes of a whole message.

    A clock changes no model, so each method is trained once; without jitter all rounds of a line take equally long.
    """
    curves: Curves = {line: {} for line in LINES}
    found: dict[str, dict[str, tuple[float, list[dict[int, float]]]]] = {line: {} for line in LINES}
    for method in METHODS:
        experiment = of(base, method)
        path = run(experiment, root=folder / "runs").path
        scope = "server/test" if experiment.topology is None else "average/test"
        runs = [series(path, seed, scope, "loss") for seed in experiment.seed_list]
        for line, speed in LINES.items():
            each = seconds_a_round(experiment, folder / "few", speed)
            found[line][method] = each, runs
            curves[line][method] = [(t * each, float(np.mean([r[t] for r in runs]))) for t in runs[0]]
        if method == "Local SGD":
            sent = series(path, experiment.seed, "total", "bytes_up")[experiment.rounds]
            size = round(sent / experiment.rounds / read_clients(path))
    limits = {line: min(points[-1][0] for points in curves[line].values()) for line in LINES}
    rows = [["method"]]
    for line, limit in limits.items():
        rows[0] += [f"ms a round over {line}", f"loss at {limit:.2g} s over {line}"]
    for method in METHODS:
        row = [method]
        for line in LINES:
            each, runs = found[line][method]
            row += [f"{1000 * each:.1f}", text_of(at_time(runs, each, limits[line]))]
        rows.append(row)
    return rows, curves, size


def read_clients(path: Path) -> int:
    clients: int = RunDirectory(path).manifest["clients"]
    return clients


def at_time(runs: list[dict[int, float]], each: float, limit: float) -> Estimate:
    """Loss of the last evaluation within the limit."""
    last = max(t for t in runs[0] if t * each <= limit * (1 + 1e-9))
    return estimate([loss[last] for loss in runs])


def scaling(size: int) -> list[list[str]]:
    """Words a second of all workers, divided by what as many would process that never communicate.

    The clock is given the messages of 200 rounds, of ``size`` bytes each, without training in between.
    """
    rows = [["method", "line", *(f"{n} worker{'s' * (n > 1)}" for n in WORKERS)]]
    for line, speed in LINES.items():
        for method, steps, behind in (("SGD, every step", 1, 0.0), ("Local SGD", STEPS, 0.0), ("CO2", STEPS, 1.0)):
            shares = []
            for n in WORKERS:
                time, ids = VirtualClock(clock(speed, jitter=0.1).devices(n, 0)), np.arange(n)
                bytes_each, evaluations = np.full(n, size), np.full(n, steps * BATCH)
                for t in range(1, 201):
                    time.advance([Computed(ids, bytes_each, evaluations), Uploaded(ids, bytes_each, behind)], t)
                shares.append(200 * steps * 0.01 / time.now)
            rows.append([method, line, *(f"{share:.2f}" for share in shares)])
    return rows


def picture(curves: Curves, path: Path) -> None:
    """Mean loss against simulated seconds, one panel for each line."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    for axes, (line, methods) in zip(figure.subplots(1, 2, sharey=True), curves.items(), strict=True):
        for (method, points), color in zip(methods.items(), COLORS, strict=True):
            axes.plot(*zip(*points, strict=True), color=color, lw=1.6, label=method)
        end = 1.5 * sorted(points[-1][0] for points in methods.values())[len(methods) // 2]
        axes.set(xlabel="simulated seconds", title=f"lines of {line}", xlim=(0, end))
        axes.grid(axis="y", color="0.9", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test loss")
    figure.axes[1].legend(fontsize=8, framealpha=0.9, edgecolor="none")
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run all, print the tables and draw the curves; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 workers, 1 seed")
    parser.add_argument("--rounds", type=int, help="rounds of local methods")
    parser.add_argument("--seeds", type=int, help="paired seeds")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of runs (default: %(default)s)")
    options = parser.parse_args(arguments)
    base = BASE
    if options.quick:
        two = GroupedNaturalIdPartitioner(num_partitions=2)
        evaluation = Evaluation(every=2, clients_every=None)
        base = replace(base, partition=two, rounds=2, seeds=1, evaluation=evaluation)
    given = {name: value for name in ("rounds", "seeds") if (value := getattr(options, name)) is not None}
    try:
        folder = create_folder(options.root, "overlap")
        rows, curves, size = losses(replace(base, **given), folder)
        tables = {"loss": rows, "scaling": scaling(size)}
        picture(curves, folder / "overlap.png")
        for name, rows in tables.items():
            (folder / f"{name}.md").write_text(markdown(rows))
            console().print(markdown(rows), highlight=False)
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console().print(f"Runs and curves: {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
