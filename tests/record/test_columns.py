"""Runs of many clients: values of a sample of them in files of columns, which are read and resumed as rows are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms import DPSGD, FedAvg
from fedsim import Dataset, Experiment, FixedSize, LocalWork, resume, run
from fedsim.controller import evaluate
from fedsim.data import Split
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.execution import Execution
from fedsim.experiment.experiment import Evaluation
from fedsim.models import Logistic
from fedsim.partition import NaturalIdPartitioner
from fedsim.record.columns import drop_columns, read_columns, write_columns
from fedsim.record.directory import SeedRecord
from fedsim.record.metrics import Metrics, read_lines, read_metrics
from topologies import Ring, Static

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
BASE = Experiment(
    FedAvg(lr=0.3),
    data=Dataset("random", Split(X, Y, np.arange(20).repeat(2)), Split(X[:9], Y[:9]), 2),
    partition=NaturalIdPartitioner(),
    model=Logistic(),
    local=LocalWork(2),
    sampling=FixedSize(size=4),
    rounds=4,
    evaluation=Evaluation(every=2, clients_every=2),
    execution=Execution("loop", checkpoint_every=1),
)
GOSSIP = replace(BASE, algorithm=DPSGD(lr=0.3), topology=Static(Ring()), sampling=FixedSize())


def of_clients(rows: Metrics) -> dict[tuple[int, str, str, int], float]:
    return {
        (int(r), s, m, int(i)): float(v)
        for r, s, i, m, v in zip(*rows, strict=True)
        if i >= 0
    }  # fmt: skip


@pytest.mark.parametrize("experiment", [BASE, GOSSIP])
def test_columns_hold_what_rows_would(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = run(experiment, output=tmp_path / "few", progress=False).path / "seed-0"
    monkeypatch.setattr(evaluate, "MANY", 10)
    many = run(experiment, output=tmp_path / "many", progress=False).path / "seed-0"
    assert b'"node": 1' not in (many / "metrics.jsonl").read_bytes()
    rows, columns = (read_metrics(path / "metrics.jsonl") for path in (few, many))
    expected, found = of_clients(rows), of_clients(columns)
    assert found.keys() == expected.keys() and len(found) == 3 * 20 * 6
    np.testing.assert_allclose(list(found.values()), [expected[key] for key in found], rtol=1e-6)
    scope = "clients/train" if experiment is BASE else "nodes/test"
    losses = [value for (r, s, m, _), value in found.items() if (r, s, m) == (4, scope, "loss")]
    assert columns.series(scope, "loss_q75")[4] == pytest.approx(np.quantile(losses, 0.75))
    assert "loss_q75" not in rows.metric
    assert columns.series(scope, "loss_mean")[4] == pytest.approx(rows.series(scope, "loss_mean")[4], rel=1e-6)


def test_of_more_clients_a_sample_is_evaluated_and_it_stays_the_same(tmp_path: Path) -> None:
    settings = replace(BASE.evaluation, clients_at_most=5)
    some = run(replace(BASE, evaluation=settings), output=tmp_path / "some", progress=False).path / "seed-0"
    rows, every = read_metrics(some / "metrics.jsonl"), run(BASE, output=tmp_path / "all", progress=False).path
    found, expected = of_clients(rows), of_clients(read_metrics(every / "seed-0" / "metrics.jsonl"))
    nodes = [{i for r, _, _, i in found if r == round} for round in (2, 4)]
    assert nodes[0] == nodes[1] and len(nodes[0]) == 5
    assert {key: pytest.approx(value, rel=1e-6) for key, value in found.items()} == {k: expected[k] for k in found}
    with pytest.raises(ConfigError, match="clients_at_most is 0; expected"):
        Evaluation(clients_at_most=0)


def test_a_resumed_run_has_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MANY", 10)
    whole = run(BASE, output=tmp_path / "whole", progress=False).path
    short = run(replace(BASE, rounds=2), output=tmp_path / "short", progress=False).path
    resume(short, BASE, rounds=4, progress=False)
    files = [sorted((p / "seed-0" / "clients").iterdir()) for p in (whole, short)]
    names = [f"round-00000{round}.npz" for round in (0, 2, 4)]
    assert [f.name for f in files[0]] == [f.name for f in files[1]] == names
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_columns_of_rounds_after_a_checkpoint_go(tmp_path: Path) -> None:
    with SeedRecord(tmp_path / "seed") as record:
        offsets = []
        for round in (1, 2, 3):
            record.add(round, [("total", None, "loss", 0.5), ("clients/train", 4, "loss", 1.0)], apart=True)
            offsets.append(record.position()["offset"])
        record.truncate(offsets[1], 2)
    assert set(read_metrics(tmp_path / "seed" / "metrics.jsonl").round) == {1, 2}
    assert [round for _, round, _, _ in read_columns(tmp_path / "seed")] == [1, 2]


def test_files_of_columns(tmp_path: Path) -> None:
    write_columns(tmp_path, 3, [("a/b", 5, "loss", 1.5), ("a/b", 7, "loss", float("nan")), ("c", 5, "f1", 2.0)])
    write_columns(tmp_path, 4, [])
    loss, other = read_columns(tmp_path)
    assert other[:2] == (("c", "f1"), 3) and [column.tolist() for column in other[2:]] == [[5], [2.0]]
    assert loss[2].tolist() == [5, 7] and np.isnan(loss[3][1]) and not (tmp_path / "clients/round-000004.npz").exists()
    drop_columns(tmp_path, after=3)
    assert len(read_columns(tmp_path)) == 2
    (tmp_path / "clients/round-000003.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"round-000003\.npz is no file of columns"):
        read_columns(tmp_path)
    drop_columns(tmp_path, after=2)
    assert read_columns(tmp_path) == []


def test_lines_of_the_file_are_told_from_columns(tmp_path: Path) -> None:
    line = '{"round": %d, "scope": "total", "node": null, "metric": "bytes_up", "value": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(line % 4 + line % 5)
    write_columns(tmp_path, 3, [("a/b", 5, "loss", 1.5), ("a/b", 7, "loss", 2.5)])
    rows, lines = read_lines(tmp_path / "metrics.jsonl")
    assert rows.round.tolist() == [4, 5, 3, 3] and rows.node.tolist() == [-1, -1, 5, 7] and lines == 2
