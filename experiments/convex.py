"""Shared parts of the experiments on problems of theory: runs from one initial model in two processes, and curves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track

from fedsim import Evaluation, Execution, Experiment, FixedSize, LocalWork, run
from fedsim.engine.machine import cores
from fedsim.errors import DivergenceError
from fedsim.partition import NaturalIdPartitioner
from fedsim.problems import Problem
from fedsim.record.directory import open_run
from fedsim.record.metrics import read_metrics


def starting_at(problem: Problem, x: np.ndarray) -> Problem:
    """The problem with ``x [d]`` as its initial model."""
    module = copy.deepcopy(problem.module)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(x), module.parameters())
    return replace(problem, module=module)


def experiment(problem: Problem, algorithm: Any, rounds: int, name: str) -> Experiment:
    """One algorithm on a problem: float64, everybody in every round, gradients of whole shards."""
    return Experiment(
        algorithm,
        data=problem,
        partition=NaturalIdPartitioner(),
        local=LocalWork(batch_size=0, steps=1),
        sampling=FixedSize(1.0),
        rounds=rounds,
        evaluation=Evaluation(every=min(20, max(1, rounds // 150))),
        dtype="float64",
        execution=Execution("blocks", problem.n, "cpu", checkpoint_every=rounds, name=name),
    )


def run_all(
    problem: Problem, algorithms: Mapping[str, Any], rounds: int, folder: Path, here: bool = False
) -> dict[str, Path]:
    """Run every algorithm, each in a process of one thread, or ``here`` one after the other, and give the runs by name;
    one that diverges ends early.
    """
    paths = {name: folder / f"{number:02d}" for number, name in enumerate(algorithms)}
    jobs = [(problem, algorithms[name], rounds, name, path) for name, path in paths.items()]
    if here:
        for job in jobs:
            _run(job)
        return paths
    with ProcessPoolExecutor(cores(), get_context("forkserver"), torch.set_num_threads, (1,)) as pool:
        for _ in track(pool.map(_run, jobs), f"{folder.name}: {len(jobs)} runs", len(jobs)):
            pass
    return paths


def _run(job: tuple[Problem, Any, int, str, Path]) -> None:
    problem, algorithm, rounds, name, path = job
    try:
        run(experiment(problem, algorithm, rounds, name), output=path, progress=False)
    except DivergenceError:
        open_run(path)                                     # it has recorded how far it came


class Curve(NamedTuple):
    """One run at its ``T`` evaluated rounds.

    Attributes:
        round: ``[T]``.
        value: ``[T]`` squared norm of the gradient of f.
        paper_bits: ``[T]`` bits that a client has sent as papers count them, 32 a value, from round 1 on.
        wire_bits: ``[T]`` bits of its messages as they travel, from round 1 on.
    """

    round: np.ndarray
    value: np.ndarray
    paper_bits: np.ndarray
    wire_bits: np.ndarray

    def to_reach(self, target: float) -> float:
        """The first evaluated round with a value of at most ``target``; NaN if there is none."""
        reached = np.flatnonzero(self.value <= target)
        return float(self.round[reached[0]]) if len(reached) else float("nan")


def read(paths: Mapping[str, Path], n: int) -> dict[str, Curve]:
    """The curves of runs with ``n`` clients, by name."""

    def one(path: Path) -> Curve:
        rows = read_metrics(path / "seed-0" / "metrics.jsonl")
        norm = rows.series("server/problem", "gradient_norm")
        paid = [rows.series("total", name) for name in ("paper_bits", "bytes_up")]
        paper, wire = (np.array([cost[t] - cost[0] for t in norm]) / n for cost in paid)
        return Curve(np.array(list(norm)), np.square(list(norm.values())), paper, 8 * wire)

    return {name: one(path) for name, path in paths.items()}
