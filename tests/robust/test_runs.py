"""Runs with rules and attacks: what is measured, resumed, refused, and written on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from algorithms import DFedAvg, FedAvg, Scaffold
from fedsim import (
    Adam,
    Data,
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    IidPartitioner,
    Logistic,
)
from fedsim.cli import main
from fedsim.controller.host import Host
from fedsim.controller.prepare import prepare
from fedsim.engine.local_work import LocalWork
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.division import DIRICHLET
from fedsim.feedback import WorkerMomentum
from fedsim.report.series import load_runs
from fedsim.robust import (
    ALIE,
    NNM,
    Backdoor,
    CenteredClipping,
    Clipping,
    GeometricMedian,
    Krum,
    LabelFlip,
    MoNNA,
    NonFinite,
    SignFlip,
    TrimmedMean,
)
from fedsim.robust.attack import Attack
from topologies import Ring, Static

BASE = Experiment(
    FedAvg(lr=0.5),
    partition=IidPartitioner(10),
    model=Logistic(),
    sampling=FixedSize(1.0),
    local=LocalWork(batch_size=0, steps=1),
    rounds=6,
    evaluation=Evaluation(every=3),
    execution=Execution(backend="loop", checkpoint_every=3),
)


def values(experiment: Experiment, root: Path) -> Mapping[tuple[str, str], float]:
    """The last values of a run that are not of single clients."""
    return load_runs([fedsim.run(experiment, root=root, progress=False).path], "server/test", "loss")[0].seeds[0].last


def chosen(rows: Tensor, weights: Tensor, k: int) -> Tensor:
    return rows[k]


def test_settings_are_written_and_read() -> None:
    e = replace(BASE, aggregate=NNM(Clipping(GeometricMedian(nu=0.2), c=3.0), f=2), attack=ALIE(ids=(1, 3), z=0.5))
    assert from_config(to_config(e)) == e and e.title == "fedavg-nnm-clipping-geometricmedian-alie-digits"
    assert replace(BASE, aggregate=lambda rows, weights: rows[0]).title == "fedavg-lambda-digits"
    assert replace(BASE, aggregate=partial(chosen, k=1)).title == "fedavg-chosen-digits"
    with pytest.raises(ConfigError, match=r"aggregate is 'Krumm'; did you mean 'Krum'"):
        from_config({"algorithm": "FedAvg", "aggregate": "Krumm"})
    with pytest.raises(ConfigError, match=r"attack\.share is 'many'; expected a number"):
        from_config({"algorithm": "FedAvg", "attack": {"name": "ALIE", "share": "many"}})


def test_a_rule_holds_where_the_mean_does_not(tmp_path: Path) -> None:
    attacked = replace(BASE, attack=SignFlip(ids=(2, 7, 9), scale=10.0))
    good, bad, held = (
        values(e, tmp_path)["server/test", "accuracy"]
        for e in (BASE, attacked, replace(attacked, aggregate=TrimmedMean(3)))
    )
    assert good > 0.7 and bad < 0.2 < 0.5 < held


def test_attackers_are_measured_apart(tmp_path: Path) -> None:
    e = replace(BASE, attack=LabelFlip(ids=(0, 5)), aggregate=Krum(2))
    found = values(e, tmp_path)
    assert found["clients/train", "scored"] == 8 and found["attackers/train", "scored"] == 2
    flipped = prepare(e, 0).own.rows(5).y                  # their own labels are flipped, and few are right
    assert torch.equal(flipped, 9 - prepare(BASE, 0).own.rows(5).y)
    assert found["attackers/train", "accuracy_mean"] < 0.3 < 0.5 < found["clients/train", "accuracy_mean"]


def test_the_success_of_a_backdoor_is_measured(tmp_path: Path) -> None:
    attack = Backdoor(ids=(0, 1, 2, 3), target=3, size=2, fraction=0.8, boost=3.0)
    e = replace(BASE, attack=attack, rounds=30, evaluation=Evaluation(every=30))
    found = values(e, tmp_path)
    held = values(replace(e, aggregate=TrimmedMean(4)), tmp_path)
    assert found["server/test", "attack_success"] > 0.5 > 0.3 > held["server/test", "attack_success"]
    assert found["server/test", "accuracy"] > 0.5          # which does not tell


def test_honest_nodes_are_measured_in_gossip(tmp_path: Path) -> None:
    attack = SignFlip(ids=(4,), scale=100.0)
    e = replace(BASE, algorithm=DFedAvg(lr=0.5), topology=Static(Ring()), attack=attack, aggregate=MoNNA(1))
    found = values(e, tmp_path)
    assert found["nodes/test", "scored"] == 9 and found["attackers/test", "scored"] == 1
    assert found["average/test", "accuracy"] > 0.5 and found["nodes", "consensus_distance"] < 10
    assert ("nodes", "contraction") not in found
    (path,) = tmp_path.iterdir()
    exported = torch.cat([p.detach().flatten() for p in fedsim.trained_model(path).parameters()])
    assert exported.abs().max() < 50                       # the average of honest models, without the attacker's


def test_nodes_are_measured_on_what_honest_ones_withhold(tmp_path: Path) -> None:
    ring = replace(BASE, algorithm=DFedAvg(lr=0.5), topology=Static(Ring()), attack=LabelFlip(ids=(4,)))
    e = replace(ring, rounds=3, evaluation=Evaluation(every=3, clients_every=0, holdout=0.2))
    path = fedsim.run(e, root=tmp_path, progress=False).path
    (run,) = load_runs([path], "nodes/holdout", "accuracy_mean")
    assert run.seeds[0].last["nodes/holdout", "scored"] == 9
    prepared, right = prepare(e, 0), []
    samples = [prepared.own.rows(i) for i in range(10) if i != 4]
    for node in (i for i in range(10) if i != 4):
        module = fedsim.trained_model(path, node=node)
        with torch.no_grad():
            hits = [(module(rows.x).argmax(1) == rows.y).double() for rows in samples]
        right.append(float(torch.cat(hits).mean()))
    assert run.seeds[0].value[-1] == pytest.approx(np.mean(right), abs=1e-6)


KEPT = LocalWork(batch_size=0, steps=2, optimizer=Adam(state="keep"))


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregate": CenteredClipping(0.1)},
        {"uplink": WorkerMomentum()},
        {"aggregate": TrimmedMean(3), "local": KEPT, "algorithm": Scaffold(lr=0.01, option="I")},
    ],
)
def test_memories_of_rules_are_resumed(tmp_path: Path, settings: dict[str, Any]) -> None:
    e = replace(BASE, attack=ALIE(0.3), **settings)
    whole = fedsim.run(e, output=tmp_path / "whole", progress=False)

    class Stops(Host):
        def round(self, *arguments: Any) -> Any:
            if arguments[4] == 5:
                raise RunError("stopped")
            return super().round(*arguments)

    with pytest.raises(RunError, match="stopped"):
        fedsim.run(e, output=tmp_path / "part", progress=False, host=Stops())
    fedsim.resume(tmp_path / "part", progress=False)
    first, second = ((path / "seed-0" / "metrics.jsonl").read_bytes() for path in (whole.path, tmp_path / "part"))
    assert first == second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregate": Krum(4)}, r"in a round, Krum with f = 4 needs 2f \+ 3 = 11 rows or more, and there are 10"),
        ({"aggregate": Krum(1), "sampling": FixedSize(0.4)}, "and there are 4; expected"),
        (
            {"aggregate": Krum(1), "weights": "samples", "partition": DirichletPartitioner(10, alpha=1.0)},
            "aggregate Krum treats all clients alike, but weights are those of their samples",
        ),
        ({"attack": Attack(ids=(3,)), "sampling": FixedSize(0.1), "rounds": 2}, "none of its 1 client is sampled in 2"),
        ({"attack": Attack(0.04)}, r"Attack\.share is 0\.04 of 10 clients, which is 0"),
        (
            {"algorithm": DFedAvg(), "topology": Static(Ring()), "aggregate": TrimmedMean(2)},
            r"node 0 has 3 messages; TrimmedMean with f = 2 needs 2f \+ 1 = 5 rows",
        ),
        (
            {"attack": LabelFlip(0.2), "data": Data("least_squares"), "partition": DIRICHLET},
            "the number of classes that LabelFlip needs is 0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_it_does(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fedsim.run(replace(BASE, **settings), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_more_attackers_than_the_rule_tolerates_are_reported() -> None:
    e = replace(BASE, aggregate=TrimmedMean(1), attack=ALIE(0.3), sampling=FixedSize(0.5), rounds=30)
    (remark,) = prepare(e, 0).remarks
    who = set(prepare(e, 0).attackers)
    most = max(len(who & set(e.participation.cohort(0, round, 10).tolist())) for round in range(1, 31))
    assert remark.endswith(f"has {most} attackers of 5 clients, and aggregate TrimmedMean tolerates 1") and most > 1
    assert not prepare(replace(e, aggregate=TrimmedMean(2), attack=ALIE(ids=(1, 2))), 0).remarks
    (remark,) = prepare(replace(e, aggregate=CenteredClipping(), attack=None), 0).remarks
    assert remark == "aggregate CenteredClipping starts from its last result, which is of another cohort"


def test_broken_messages_under_partial_participation(tmp_path: Path) -> None:
    e = replace(BASE, aggregate=TrimmedMean(2), attack=NonFinite(0.2), sampling=FixedSize(0.5))
    assert np.isfinite(values(e, tmp_path)["server/test", "loss"])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "run --algorithm FedAvg --partition IidPartitioner --partition.num_partitions 10 --sampling.fraction 1"
        " --rounds 2 --model Logistic --aggregate NNM --aggregate.rule TrimmedMean --aggregate.rule.f 2 --attack ALIE"
        " --attack.share 0.2 --backend loop --quiet"
    )
    assert main([*line.split(), "--root", str(tmp_path)]) == 0
    assert (tmp_path / "fedavg-nnm-trimmedmean-alie-digits").is_dir()
    for section, name in (("rules", "FlagAggregator"), ("attacks", "OptimalIPM"), ("uplinks", "WorkerMomentum")):
        assert main(["list", section]) == 0
        assert f"  {name}  " in capsys.readouterr().out


def test_alie_says_when_it_is_none() -> None:
    def remark(n: int, f: int, **settings: Any) -> list[str]:
        e = replace(BASE, partition=IidPartitioner(n), attack=ALIE(ids=tuple(range(f)), **settings))
        return [text for text in prepare(e, 0).remarks if "ALIE" in text]

    assert "no attack with its z of 10 clients and 2 attackers, 0;" in remark(10, 2)[0]
    assert remark(15, 3) == remark(10, 2, z=1.5) == []
