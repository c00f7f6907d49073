"""Overhead and speed-up of the Ray backend: rounds in actors against rounds in one process, in turns.

    python -m benchmarks.ray                        # all three questions
    python -m benchmarks.ray overhead speedup

overhead: LeNet-5, 20 clients a round, one actor of one thread against this process with one thread.
speedup: the McMahan CNN, 10 clients a round, two actors of one thread each against this process with one thread.
start: seconds from `fedsim run --backend ray --ray.actors 2` to the first round's measurements.

The fastest of all turns counts for each: on a shared machine the minimum is what the code costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from algorithms import FedAvg
from benchmarks.work import Work
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.ray_backend import RayActors
from fedsim.backends.ray.session import session
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.loop import Loop
from fedsim.experiment.execution import Ray
from fedsim.models import LeNet5, McMahanCNN
from fedsim.record.metrics import read_metrics


@dataclass(frozen=True)
class Case:
    """Work for one process and for ``actors``, in blocks of ``block_size`` clients; 0 for one after the other."""

    work: Work
    block_size: int
    actors: int


CASES = {
    "overhead": Case(Work(LeNet5(), 100, 20, 100), 10, 1),
    "speedup": Case(Work(McMahanCNN(), 50, 10, 60), 0, 2),
}


def measure(case: Case, ray: Any, seconds: float) -> dict[str, float]:
    """Least seconds of a round, in this process and in the actors."""
    fed, algorithm = case.work.federation(), FedAvg()
    workers = Workers(ray, Ray(actors=case.actors))
    contenders = {
        "one process": Blocks(case.block_size) if case.block_size else Loop(),
        "actors": RayActors(workers, case.block_size),
    }
    state = algorithm.init(fed.model.vector(), cohort(fed, 0))
    best = dict.fromkeys(contenders, float("inf"))
    end, turns = time.perf_counter() + seconds, 0
    while turns < 3 or time.perf_counter() < end:
        for name, backend in contenders.items():
            there = replace(fed, backend=backend)
            for _ in range(2):                             # after the other's turn: its own caches again
                start = time.perf_counter()
                algorithm.round(state, cohort(there, 1, case.work.ids))
                best[name] = min(best[name], time.perf_counter() - start)
        turns += 1
    workers.close()
    return best


def start() -> float:
    """Seconds from the command to the first round's measurements."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "fedsim", "run", "--algorithm", "FedAvg", "--backend", "ray", "--quiet"]
        options = ["--ray.actors", "2", "--rounds", "2000", "--evaluation.every", "1", "--block_size", "5"]
        begun = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, *options, "--output", str(run)], env=environment)
        metrics = run / "seed-0" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and (read_metrics(metrics).round > 0).any()):
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        process.terminate()
        process.wait()
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="overhead, speedup, start; all by default")
    parser.add_argument("--seconds", type=float, default=30, help="time for each; 30 by default")
    parser.add_argument("--starts", type=int, default=3, help="starts, of which the fastest counts; 3 by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = arguments.questions or [*CASES, "start"]
    if unknown := set(asked) - {*CASES, "start"}:
        parser.error(f"unknown question: {', '.join(sorted(unknown))}")
    found: dict[str, dict[str, float]] = {}
    if set(asked) & set(CASES):
        with session(cpus=4, gpus=0, object_store_bytes=500_000_000) as ray:
            for name in (name for name in asked if name in CASES):
                best = measure(CASES[name], ray, arguments.seconds)
                found[name] = {**best, "ratio": best["one process"] / best["actors"]}
    if "start" in asked:
        found["start"] = {"seconds": min(start() for _ in range(arguments.starts))}
    for name, numbers in found.items():
        print(json.dumps({"question": name, **numbers}) if arguments.json else f"{name:9} {numbers}", flush=True)


if __name__ == "__main__":
    main()
