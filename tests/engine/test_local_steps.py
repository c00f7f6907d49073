"""Step sizes that change within a round, and minibatches in several passes: plain formulas, and equal on backends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from algorithms import DPSGD, FedAvg, FedCM, FedProx, FedSAM, Scaffold
from fedsim import Adam, CosineSteps, Execution, Experiment, FixedSize, LinearSteps, LocalWork, run
from fedsim.clients import cohort
from fedsim.controller.local_steps import check_local_steps
from fedsim.controller.prepare import prepare
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Meter
from fedsim.engine.local_work import minibatches
from fedsim.engine.step_schedules import factors_of
from fedsim.errors import ConfigError
from tests.controller.test_run import SMALL
from topologies import Ring, Static

WORK = LocalWork(batch_size=8, epochs=2, step_schedule=CosineSteps(warmup=2))
BASE = replace(SMALL, algorithm=FedAvg(lr=0.1), local=WORK, sampling=FixedSize(size=5), dtype="float64")
DROPPING = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))


def after(experiment: Experiment, blocks: int = 0, rounds: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """Server model and gradient evaluations after some rounds."""
    prepared = prepare(experiment, 0)
    fed = replace(prepared.federation, backend=Blocks(blocks)) if blocks else prepared.federation
    meter, method = Meter(fed), experiment.method
    state = method.init(fed.model.vector(), cohort(fed, 0, meter=meter))
    for round in range(1, rounds + 1):
        ids = experiment.participation.cohort(0, round, fed.shards.n)
        state = method.round(state, cohort(fed, round, ids, meter))
    return state.x, meter.ledger.gradient_evaluations


def test_a_round_with_a_schedule_is_plain_sgd_with_it() -> None:
    prepared = prepare(BASE, 0)
    fed, x = prepared.federation, prepared.federation.model.vector()
    (ids,) = (BASE.participation.cohort(0, 1, fed.shards.n),)
    ends = []
    for plan in minibatches(WORK, fed.shards, 0, 1, ids):
        y, steps = x.clone(), len(plan.lengths)
        for k, (rows, length) in enumerate(zip(plan.index, plan.lengths, strict=True)):
            done = max(0, k - 2) / max(1, steps - 2)
            factor = (k + 1) / 3 if k < 2 else 0.5 * (1 + np.cos(np.pi * done))
            y = y - 0.1 * factor * fed.model.gradient(y, fed.shards.take(torch.from_numpy(rows[:length].copy())))
        ends.append(y)
    torch.testing.assert_close(after(BASE, rounds=1)[0], torch.stack(ends).mean(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "experiment",
    [
        BASE,
        replace(BASE, algorithm=FedSAM(lr=0.1)),
        replace(BASE, algorithm=Scaffold(lr=0.1, option="I"), local=replace(WORK, step_schedule=LinearSteps(0.1))),
        replace(BASE, algorithm=FedProx(lr=0.01), local=replace(WORK, optimizer=Adam())),
        replace(BASE, local=LocalWork(batch_size=8, micro_batch=3)),
        replace(BASE, algorithm=Scaffold(lr=0.1, option="I"), local=replace(WORK, micro_batch=5)),
        replace(BASE, model=DROPPING, local=LocalWork(batch_size=8, micro_batch=3)),
        replace(BASE, algorithm=FedProx(lr=0.01), local=LocalWork(batch_size=0, steps=2, micro_batch=4)),
    ],
    ids=["FedAvg", "FedSAM", "Scaffold", "FedProx, Adam", "micro", "Scaffold, both", "dropout", "whole shard"],
)
def test_the_loop_and_blocks_agree(experiment: Experiment) -> None:
    (loop, paid), (blocks, paid_there) = after(experiment), after(experiment, blocks=3)
    torch.testing.assert_close(loop, blocks, rtol=1e-11, atol=1e-13)
    assert (paid == paid_there).all()


@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), Scaffold(lr=0.1, option="I")])
def test_micro_batches_sum_to_the_minibatch(algorithm: FedAvg, blocks: int) -> None:
    plain = replace(BASE, algorithm=algorithm, local=LocalWork(batch_size=8))
    (whole, paid), (parts, paid_in_parts) = (
        after(replace(plain, local=replace(plain.local, micro_batch=micro)), blocks) for micro in (None, 3)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-11, atol=1e-13)
    assert (paid == paid_in_parts).all() and paid.sum() > 0


def test_factors() -> None:
    assert factors_of(LinearSteps(), 4).tolist() == [1, 0.75, 0.5, 0.25]
    assert factors_of(LinearSteps(floor=1.0, warmup=3), 5).tolist() == [0.25, 0.5, 0.75, 1, 1]
    assert factors_of(CosineSteps(floor=0.2), 2) == pytest.approx([1, 0.6])
    assert factors_of(LinearSteps(warmup=9), 3).tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        (replace(BASE, algorithm=FedCM()), "FedCM divides by K eta, as for SGD; leave it out"),
        (replace(BASE, algorithm=Scaffold(option="II")), "changes the step size within a round"),
        (
            replace(BASE, algorithm=DPSGD(), topology=Static(Ring()), sampling=FixedSize(1.0)),
            "made no step by local.descend .* local.step_schedule would have no effect",
        ),
    ],
)
def test_methods_that_refuse_a_schedule(experiment: Experiment, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_local_steps(experiment, prepare(experiment, 0))


def minus(k: np.ndarray, steps: int) -> np.ndarray:
    return -np.ones(steps)


def test_bad_settings() -> None:
    for given, words in (
        ({"step_schedule": CosineSteps}, "expected a schedule such as CosineSteps"),
        ({"step_schedule": minus}, "expected 1 finite numbers, 0 or more"),
        ({"micro_batch": 0}, "local.micro_batch is 0; expected a whole number, 1 or more"),
    ):
        with pytest.raises(ConfigError, match=words):
            LocalWork(**given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="floor is 2"):
        LinearSteps(floor=2)
    mixing = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    with pytest.raises(ConfigError, match=r"local.micro_batch is 4, and the model or its loss has BatchNorm"):
        prepare(replace(BASE, model=mixing, local=LocalWork(batch_size=8, micro_batch=4)), 0)


def test_both_settings_in_a_run(tmp_path: object) -> None:
    work = replace(WORK, micro_batch=4)
    made = run(replace(BASE, local=work, rounds=1, execution=Execution(backend="loop")), root=tmp_path, progress=False)  # type: ignore[arg-type]
    assert made.config["local"]["step_schedule"] == {"name": "CosineSteps", "floor": 0.0, "warmup": 2}
    assert made.config["local"]["micro_batch"] == 4
