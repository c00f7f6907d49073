"""Messages under way after the last round are used before it is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import CO2, DCO2
from fedsim import Execution, Experiment, LocalWork, TopK, run
from fedsim.feedback import Choco, EF14Uplink
from fedsim.problems import zeta_least_squares
from fedsim.record.metrics import read_metrics
from topologies import Ring, Static

SMALL = Experiment(
    CO2(lr=0.02),
    data=zeta_least_squares(n=5, d=6, seed=0),
    local=LocalWork(batch_size=0, steps=2),
    rounds=4,
    dtype="float64",
    execution=Execution("loop"),
)
GOSSIP = replace(SMALL, algorithm=DCO2(lr=0.02), topology=Static(Ring()))


@pytest.mark.parametrize(
    "experiment",
    [SMALL, replace(SMALL, uplink=EF14Uplink(TopK(0.5))), GOSSIP, replace(GOSSIP, uplink=Choco(TopK(0.5), gamma=0.3))],
    ids=["server", "server, EF14", "gossip", "gossip, CHOCO"],
)
def test_the_last_model_has_seen_every_round(experiment: Experiment, tmp_path: Path) -> None:
    """After ``finish`` it is the model of one more round, which the last one's local work did not reach otherwise."""
    scope = "server/problem" if experiment.topology is None else "average/problem"
    every = replace(experiment, evaluation=replace(experiment.evaluation, every=1))
    paths = [run(replace(every, rounds=T), root=tmp_path, progress=False).path for T in (4, 5)]
    four, five = (read_metrics(path / "seed-0" / "metrics.jsonl") for path in paths)
    short, long = (rows.series(scope, "objective") for rows in (four, five))
    assert [short[t] for t in range(4)] == [long[t] for t in range(4)]
    assert short[4] != long[4]
    assert len({*long.values()}) == 5                      # only round 1, in which nothing arrives, changes nothing
    costs = [rows.series("total", "bytes_up")[4] for rows in (four, five)]
    assert costs[0] == costs[1], "finish sends nothing"
