"""Samples by a function of the client: the run of the same samples in memory, to the byte; a bounded cache; errors."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import DPSGD, FedAvg
from fedsim import (
    Dataset,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    IidPartitioner,
    LocalWork,
    NaturalIdPartitioner,
    NoiseSkew,
    Split,
    dataset_by_client,
    resume,
    run,
)
from fedsim.controller.prepare import prepare
from fedsim.errors import CodeError, ConfigError, DataError
from fedsim.robust import LabelFlip
from topologies import Ring, Static

SIZES = np.array([7, 12, 9, 5, 12, 12, 8])


def samples(client: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(client)
    return rng.integers(0, 256, (SIZES[client], 1, 4, 4), dtype=np.uint8), rng.integers(0, 3, SIZES[client])


TEST = samples(2)
LAZY = dataset_by_client(samples, SIZES, TEST, 3, budget=400)
X, Y = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*map(samples, range(7)), strict=True))
HELD = Split(*map(torch.from_numpy, TEST), None, True)
HERE = Dataset("clients", Split(X, Y, np.arange(7).repeat(SIZES), True), HELD, 3)
CASE = Experiment(
    FedAvg(lr=0.2), data=LAZY, local=LocalWork(4), sampling=FixedSize(0.5), rounds=3,
    evaluation=Evaluation(every=1, clients_every=2), execution=Execution("loop"),
)  # fmt: skip


def rows(path: Path) -> bytes:
    return (path / "seed-0/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"execution": Execution("blocks", block_size=2)},
        {"evaluation": Evaluation(clients_every=1, holdout=0.3, fine_tune=2, unseen=0.3)},
        {"evaluation": Evaluation(clients_at_most=3), "dtype": "float64", "weights": "samples"},
        {"algorithm": DPSGD(), "topology": Static(Ring()), "sampling": FixedSize()},
    ],
    ids=["loop", "blocks", "holdout and newcomers", "some clients", "gossip"],
)
def test_the_run_is_that_of_samples_in_memory(changed: dict[str, Any], tmp_path: Path) -> None:
    lazy = replace(CASE, **changed)
    here = replace(lazy, data=HERE, partition=NaturalIdPartitioner())
    a = run(lazy, output=tmp_path / "lazy", progress=False).path
    b = run(here, output=tmp_path / "here", progress=False).path
    assert rows(a) == rows(b)


def test_a_resumed_run_has_the_same_bytes_and_other_samples_are_refused(tmp_path: Path) -> None:
    whole = run(CASE, output=tmp_path / "whole", progress=False).path
    run(replace(CASE, rounds=1), output=tmp_path / "part", progress=False)
    resume(tmp_path / "part", CASE, rounds=3, progress=False)
    assert rows(whole) == rows(tmp_path / "part")
    other = dataset_by_client(lambda i: samples(max(1, i)), np.maximum(SIZES, 12 * (np.arange(7) < 1)), TEST, 3)
    with pytest.raises(Exception, match="data"):
        resume(tmp_path / "part", replace(CASE, data=other), rounds=4, progress=False)


def test_what_is_kept_stays_within_its_budget() -> None:
    called: list[int] = []

    def counted(client: int) -> Any:
        called.append(client)
        return np.ones((10, 4), np.float32), np.zeros(10, int)   # 240 bytes

    data = dataset_by_client(counted, np.full(1000, 10), counted(0), 2, budget=3 * 240)
    called.clear()
    for client in (5, 6, 7, 5, 8, 5, 6):
        data.source.samples(client)
    assert called == [5, 6, 7, 8, 6] and data.source._bytes <= 3 * 240
    assert len(pickle.dumps(HELD)) > 0 and data.source._kept.keys() == {5, 8, 6}
    copy = pickle.loads(pickle.dumps(LAZY))
    assert torch.equal(copy.source.samples(3)[0], LAZY.source.samples(3)[0])


def test_bytes_stay_bytes_until_a_batch_is_taken() -> None:
    shards = prepare(CASE, 0).federation.shards
    batch = shards.take(torch.tensor([[0, 60], [8, 1]]))
    assert LAZY.source.samples(0)[0].dtype == torch.uint8 and batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x, X[torch.tensor([[0, 60], [8, 1]])].float() / 255)
    assert torch.equal(batch.y, Y[torch.tensor([[0, 60], [8, 1]])]) and not shards.in_memory
    with pytest.raises(ConfigError, match="never all in memory"):
        _ = shards.x


def broken(client: int) -> Any:
    raise OSError("no such file")


COUNT = iter(range(1000))
PAIR = np.ones((4, 2), np.float32), np.zeros(4, int)


@pytest.mark.parametrize(
    ("load", "sizes", "message"),
    [
        (broken, [4], r"broken\(0\) raised OSError: no such file"),
        (lambda i: PAIR, [4, 0], "sizes is .* whole numbers of 1 or more"),
        (lambda i: PAIR, [5], r"returned 4 inputs and 4 targets; expected 5 of each, as sizes says"),
        (lambda i: PAIR[0], [4], "returned a ndarray; expected inputs and targets"),
        (lambda i: (PAIR[0], ["a"] * 4), [4], "targets of <U1; expected numbers of classes"),
        (lambda i: (PAIR[0] * np.nan, PAIR[1]), [4], "an input that is NaN or infinite"),
        (lambda i: (PAIR[0] * next(COUNT), PAIR[1]), [4], "gives client 0 other samples when it is called again"),
        (lambda i: (PAIR[0], PAIR[1] + 7), [4], "targets from 7 to 7; expected 0 to 1"),
        (lambda i: (PAIR[0].astype(np.uint8), PAIR[1]), [4], "test inputs are torch.float32, those of clients"),
    ],
)
def test_functions_that_give_no_data(load: Any, sizes: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError, CodeError), match=message):
        dataset_by_client(load, sizes, PAIR, 2)


def test_a_client_of_another_form_is_named() -> None:
    data = dataset_by_client(lambda i: PAIR if i < 1 else (PAIR[0][:, :1], PAIR[1]), [4, 4], PAIR, 2)
    with pytest.raises(DataError, match=r"\(1\) returned samples of the form .*expected .* as before"):
        data.source.samples(1)


def test_what_needs_all_samples_is_refused() -> None:
    for changed, message in (
        ({"partition": IidPartitioner(4)}, "partition is for samples in memory, .*; its clients are those of"),
        ({"skew": NoiseSkew()}, "skew is for samples in memory, .*; distort samples in the function"),
        ({"attack": LabelFlip(0.2)}, "attack LabelFlip is for samples in memory"),
        ({"execution": Execution("ray")}, "backend ray is for samples in memory, .*; use auto, loop or blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(CASE, **changed)  # type: ignore[arg-type]
