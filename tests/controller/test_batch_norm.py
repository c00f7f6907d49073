"""BatchNorm in training runs under methods that average its statistics; others are refused with the ways out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import EF21BC, DFedAvg, DFedSAM, FedAMD, FedAvg, FedCM, FedOpt, FedProx, FedSAM, FedSpeed, Scaffold
from fedsim import (
    Batch,
    Clients,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    Local,
    LocalWork,
    read_metrics,
    resume,
    run,
)
from fedsim.compress import TopK
from fedsim.controller.batch_norm import check_statistics
from fedsim.controller.prepare import prepare
from fedsim.engine.optimizers import AdamW
from fedsim.errors import ConfigError, FedsimError, ModelError, PartitionError
from fedsim.feedback import EF21Uplink
from fedsim.partition import IidPartitioner, Partition
from fedsim.robust import IPM, CoordinateMedian
from topologies import Ring, Static

RING = Static(Ring())


class State(NamedTuple):
    x: Tensor


@dataclass(frozen=True)
class Own:
    """A user's FedAvg, without ``local.descend``, or with a server that keeps half of its model."""

    descends: bool = True
    kept: float = 0.0

    def init(self, x: Tensor, clients: Clients) -> State:
        return State(x)

    def round(self, s: State, clients: Clients) -> State:
        return State(self.kept * s.x + (1 - self.kept) * clients.mean(clients.each(self.client, s.x)))

    def client(self, local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch) -> Tensor:
            g = local.grad(y, batch)
            return local.descend(y, g, 0.1) if self.descends else y - 0.1 * g

        return local.fold(step, x)


class Update(NamedTuple):
    d: Tensor
    squared: Tensor


@dataclass(frozen=True)
class Extrapolating(Own):
    """A user's FedExP, whose server steps further than the mean of updates that cancel in it."""

    def round(self, s: State, clients: Clients) -> State:
        mean = clients.mean(clients.each(self.update, s.x))
        return State(s.x + torch.clamp(mean.squared / (2 * mean.d.square().sum()), min=1) * mean.d)

    def update(self, local: Local, x: Tensor) -> Update:
        d = self.client(local, x) - x
        return Update(d, d.square().sum())


AVERAGED: dict[str, Experiment] = {
    **{type(a).__name__: Experiment(a) for a in (FedAvg(), FedProx(), FedSAM(), Scaffold(), FedCM(), Own())},
    **{type(a).__name__: Experiment(a, topology=RING) for a in (DFedAvg(), DFedSAM())},
    "weights": Experiment(FedAvg(), weights="samples"),
    "under attack": Experiment(FedAvg(), attack=IPM(0.2)),
    "AdamW": Experiment(FedAvg(), local=LocalWork(0, steps=7, optimizer=AdamW(state="keep"))),
    "long steps": Experiment(FedAvg(lr=500)),
    "decay": Experiment(FedAvg(lr=1e3), local=LocalWork(weight_decay=0.3, clip_norm=0.1)),
}
OTHERS: dict[str, Experiment] = {
    **{type(a).__name__: Experiment(a) for a in (FedOpt(), FedSpeed(), FedAMD())},
    "a server's step": Experiment(Own(kept=0.5)),
    "a server that extrapolates": Experiment(Extrapolating()),
    "no step": Experiment(Own(descends=False)),
    "compressed": Experiment(FedAvg(), uplink=EF21Uplink(TopK(0.5))),
    "another mean": Experiment(FedAvg(), aggregate=CoordinateMedian()),
    "all clients": Experiment(EF21BC()),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_methods_that_average_the_clients_models(name: str) -> None:
    drawn = torch.get_rng_state()
    check_statistics(AVERAGED[name])
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused_with_the_ways_out(name: str) -> None:
    method, ways = type(OTHERS[name].algorithm).__name__, r"group_norm\(model\).*layer\.eval\(\).*such as FedAvg"
    with pytest.raises(ModelError, match=rf"BatchNorm in training mode, and {method}.*{ways}"):
        check_statistics(OTHERS[name])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10), nn.BatchNorm1d(10)
    )  # fmt: skip


SMALL = Experiment(
    FedAvg(lr=0.2), model=network(), partition=IidPartitioner(10), local=LocalWork(batch_size=16), rounds=4,
    sampling=FixedSize(0.5), evaluation=Evaluation(every=4), dtype="float64", execution=Execution("loop"),
)  # fmt: skip


def test_a_run_learns_and_is_the_same_in_blocks(tmp_path: Path) -> None:
    loop, blocks = SMALL.execution, Execution("blocks", block_size=2)
    ends = []
    for name, execution in (("loop", loop), ("again", loop), ("blocks", blocks)):
        made = run(replace(SMALL, execution=execution), output=tmp_path / name, progress=False)
        ends.append(made.seed_path(0) / "metrics.jsonl")
    assert ends[0].read_bytes() == ends[1].read_bytes()
    first, _, also = (read_metrics(path).series("server/test", "loss")[4] for path in ends)
    assert first < 1 and also == pytest.approx(first, abs=1e-9)


def test_an_experiment_with_another_method_ends_before_it_begins() -> None:
    with pytest.raises(ModelError, match="and FedSpeed with these settings does not leave the mean"):
        prepare(replace(SMALL, algorithm=FedSpeed()), 0)


def test_minibatches_of_one_sample() -> None:
    """Eight clients have 13 minibatches of 11 and one of 1; two have 143 samples."""
    with pytest.raises(ConfigError, match=r"8 of 10 clients have a minibatch of one sample, as client 0 with 144"):
        prepare(replace(SMALL, local=LocalWork(batch_size=11)), 0)
    prepare(replace(SMALL, local=LocalWork(batch_size=11, steps=13)), 0)
    prepare(replace(SMALL, local=LocalWork(batch_size=11), model=nn.Sequential(*network()[:5])), 0)  # type: ignore[index]


@dataclass(frozen=True)
class Uneven:
    """Ten equal clients; with the seed 1 two, of which one has ``left`` samples, or none that is feasible."""

    left: int

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Partition:
        """See ``Partitioner``."""
        if seed == 1 and not self.left:
            raise PartitionError("the partition of seed 1 is infeasible")
        n = len(labels)
        offsets = np.array([0, n - self.left, n]) if seed else np.linspace(0, n, 11).astype(int)
        return Partition(np.arange(n), offsets, {})


@pytest.mark.parametrize(
    ("left", "said"), [(0, "the partition of seed 1 is infeasible"), (17, "have a minibatch of one sample")]
)
def test_other_seeds_are_checked_before_the_first_is_run(left: int, said: str, tmp_path: Path) -> None:
    experiment = replace(SMALL, partition=Uneven(left), seeds=2, local=LocalWork(batch_size=16, epochs=1))
    with pytest.raises(FedsimError, match=said):
        run(experiment, output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    made = run(one := replace(experiment, seeds=1), output=tmp_path / "one", progress=False)
    made.mark(0, "interrupted")
    before = made.config, made.manifest
    with pytest.raises(FedsimError, match=said):
        resume(made.path, one, seeds=2, progress=False)
    assert (made.config, made.manifest) == before
