"""Settings that act in local steps alone: refused at set-up where a method makes none, or cannot mean them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import (
    ALGORITHMS,
    EF21,
    KGT,
    LORA,
    OVERLAP,
    PERSONAL,
    SGP,
    DFedAvg,
    DFedSAM,
    FedADMM,
    FedAsync,
    FedAvg,
    FedBuff,
    FedCM,
    FedGamma,
    FedNova,
    FedOpt,
    FedProx,
    FedSAM,
    FedSMOO,
    FedSpeed,
    MoFedSAM,
    PerFedAvg,
    Scaffold,
)
from fedsim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Batch,
    Data,
    Dataset,
    Execution,
    Experiment,
    FixedSize,
    HeavyBall,
    IidPartitioner,
    Local,
    LocalWork,
    Split,
    Vector,
    run,
)
from fedsim.algorithm import has_server
from fedsim.controller.local_steps import check_local_steps
from fedsim.controller.prepare import Prepared, prepare
from fedsim.errors import ConfigError
from topologies import Ring, Static

DESCENDING = {
    DFedAvg, DFedSAM, FedADMM, FedAvg, FedCM, FedGamma, FedNova, FedOpt, FedProx, FedSAM, FedSMOO, FedSpeed, KGT,
    MoFedSAM, SGP, Scaffold, *OVERLAP, *PERSONAL, FedAsync, FedBuff,
}  # fmt: skip
DIVIDING = {FedCM, FedGamma, FedNova, KGT, MoFedSAM, Scaffold, PerFedAvg}
"""Those that take K eta for the sum of their steps, or make only every other one."""


def experiment(algorithm: Any, **local: Any) -> Experiment:
    return Experiment(
        algorithm,
        data=Data("digits"),
        partition=IidPartitioner(4),
        model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        topology=None if has_server(algorithm) else Static(Ring(), lazy=True),
        local=LocalWork(**local),
        sampling=FixedSize(1.0),
        rounds=1,
        execution=Execution(backend="loop"),
    )


@pytest.fixture(scope="module")
def prepared() -> Callable[[Any], Prepared]:
    made = {server: prepare(experiment(FedAvg() if server else DFedAvg()), 0) for server in (True, False)}
    return lambda algorithm: made[has_server(algorithm)]


@pytest.mark.parametrize("algorithm", [cls for cls in ALGORITHMS if cls not in LORA])   # which need a model of LoRA
def test_a_method_without_local_steps_refuses_what_acts_in_them(
    algorithm: Any, prepared: Callable[[Any], Prepared]
) -> None:
    method: Any = algorithm()
    check_local_steps(experiment(method, weight_decay=0.1, clip_norm=1.0), prepared(method))
    decay, clip = {"weight_decay": 0.1, "weight_decay_mode": "step"}, {"clip_norm": 1.0, "clip_mode": "direction"}
    for local in ({"optimizer": AdamW()}, decay, clip):
        settings: Any = local
        case = experiment(method, **settings)
        fed = prepared(method)
        fed = replace(fed, federation=replace(fed.federation, work=case.local))
        if algorithm not in DESCENDING:
            with pytest.raises(ConfigError, match=f"{algorithm.__name__} made no step by .* so local.* no effect"):
                check_local_steps(case, fed)
        elif "optimizer" in local and algorithm in DIVIDING:
            with pytest.raises(ConfigError, match=r"local\.optimizer is AdamW, but .* SGD"):
                check_local_steps(case, fed)
        else:
            check_local_steps(case, fed)


class Unmoved(FedAvg):
    """Makes its steps where the gradient is not zero, which a trial with zero gradients cannot see."""

    def client(self, local: Local, x: Vector) -> Vector:
        """See ``FedAvg``."""

        def step(y: Vector, batch: Batch, eta: Vector) -> Vector:
            g = local.grad(y, batch)
            return local.descend(y, g, eta) if g.norm() > 0 else y

        return local.fold(step, x, self.lr * local.decay) - x


def test_a_refusal_says_what_was_tried(prepared: Callable[[Any], Prepared]) -> None:
    method = Unmoved()
    with pytest.raises(ConfigError, match=r"Unmoved made no step by local\.descend when .* tried with zero gradients"):
        check_local_steps(experiment(method, optimizer=Adagrad()), prepared(method))


def refused(case: Experiment, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(case, output=folder / "run", progress=False)
    assert not (folder / "run").exists()


def test_two_momenta_of_one_step_are_refused(tmp_path: Path) -> None:
    for method in (FedAvg(momentum=0.9), DFedAvg(momentum=0.9)):
        for optimizer in (HeavyBall(), Adam()):
            refused(experiment(method, optimizer=optimizer), "momentum 0.9 are two momenta", tmp_path)
    run(experiment(FedAvg(momentum=0.9, lr=0.01), optimizer=Adagrad()), output=tmp_path / "one", progress=False)


def test_a_refusal_leaves_no_run_behind(tmp_path: Path) -> None:
    refused(experiment(EF21(), optimizer=Adam()), "EF21 made no step by .* so local.optimizer Adam", tmp_path)
    refused(experiment(Scaffold(), optimizer=HeavyBall()), "option II divides by K eta.*option to I", tmp_path)
    run(experiment(Scaffold(lr=0.01, option="I"), optimizer=HeavyBall()), output=tmp_path / "one", progress=False)
    run(experiment(EF21(), optimizer=SGD()), output=tmp_path / "plain", progress=False)


def test_inputs_of_several_tensors_are_tried_too(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.layer(a + b)
            return out

    x, y = torch.randn(20, 3), torch.arange(20) % 2
    split = Split({"a": x, "b": x}, y)
    case = replace(experiment(FedAvg(), optimizer=AdamW()), data=Dataset("two", split, split, 2), model=Sum())
    run(case, output=tmp_path / "run", progress=False)
