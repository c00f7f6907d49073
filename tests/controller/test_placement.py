"""Samples of clients: the same to the bit whether they are copied, shared with the data set or gathered from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms import FedAvg
from fedsim import Dataset, Experiment, FixedSize, LocalWork, run
from fedsim.controller import placement
from fedsim.controller.prepare import prepare
from fedsim.data import Split
from fedsim.engine.scattered import Scattered
from fedsim.experiment.evaluation import Evaluation
from fedsim.experiment.execution import Execution
from fedsim.models import Logistic
from fedsim.partition import IidPartitioner, NaturalIdPartitioner
from fedsim.robust.poisoning import LabelFlip


def data(order: np.ndarray | None = None) -> Dataset:
    """Six clients of unequal size; their samples follow each other unless in another ``order``."""
    client = np.repeat(np.arange(6), [3, 5, 4, 7, 6, 5])
    generator = torch.Generator().manual_seed(0)
    x, order = torch.randn(30, 4, generator=generator), np.arange(30) if order is None else order
    train = Split(x[order], (x[order, 0] > 0).long(), client[order])
    return Dataset("random", train, Split(x[:8].clone(), (x[:8, 0] > 0).long()), 2)


BASE = Experiment(
    FedAvg(lr=0.3),
    data=data(np.random.default_rng(1).permutation(30)),
    partition=NaturalIdPartitioner(),
    model=Logistic(),
    local=LocalWork(2),
    sampling=FixedSize(size=3),
    rounds=3,
    evaluation=Evaluation(clients_every=1),
    execution=Execution("loop"),
)


@pytest.mark.parametrize("backend", ["loop", "blocks"])
@pytest.mark.parametrize("batch_size", [2, 0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_a_run_on_gathered_samples_is_that_on_copied_ones(
    backend: str, batch_size: int, dtype: str, holdout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(
        BASE, local=LocalWork(batch_size), evaluation=Evaluation(clients_every=1, holdout=holdout), dtype=dtype,
        execution=Execution(backend, 2 if backend == "blocks" else 0),
    )  # fmt: skip
    copied = run(experiment, output=tmp_path / "copied", progress=False)
    monkeypatch.setattr(placement, "COPIED", 0)
    prepared = prepare(experiment, 0)
    assert isinstance(prepared.federation.shards, Scattered) and isinstance(prepared.own, Scattered)
    gathered = run(experiment, output=tmp_path / "gathered", progress=False)
    metrics = [(r.path / "seed-0" / "metrics.jsonl").read_bytes() for r in (copied, gathered)]
    assert metrics[0] == metrics[1]


def test_samples_in_the_order_of_clients_are_not_copied() -> None:
    ordered = replace(BASE, data=data())
    shards = prepare(ordered, 0).federation.shards
    assert shards.x.data_ptr() == ordered.data.train.x.data_ptr()  # type: ignore[union-attr]
    scattered = prepare(replace(ordered, partition=IidPartitioner(3)), 0).federation.shards
    assert scattered.x.data_ptr() != ordered.data.train.x.data_ptr()  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", [0, placement.COPIED])
def test_an_attack_on_samples_leaves_the_data_set_as_it_is(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "COPIED", limit)
    given = data()
    before = given.train.y.clone()
    prepared = prepare(replace(BASE, data=given, attack=LabelFlip(0.5)), 0)
    assert len(prepared.attackers) == 3 and torch.equal(given.train.y, before)
    assert not torch.equal(prepared.federation.shards.y, before)


def test_a_span_of_gathered_samples_reads_no_others() -> None:
    x, order = torch.arange(10.0).unsqueeze(1), np.array([7, 2, 9, 0])
    shards = Scattered(x, x[:, 0].long(), order, np.array([0, 1, 4]), torch.float64)
    assert shards.rows(1).y.tolist() == [2, 9, 0] and shards.x.dtype == torch.float64
    assert shards.take(torch.tensor([[0, 3], [1, 1]])).y.tolist() == [[7, 0], [2, 2]]
    assert shards.y.tolist() == [7, 2, 9, 0] and shards.runs(np.array([0]), np.array([2])) is None
