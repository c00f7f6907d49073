"""BatchNorm's running statistics are coordinates of the vector, which a step takes over and nothing else touches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg, FedCM, FedSAM, Scaffold
from fedsim.clients import cohort
from fedsim.data import Split
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import examine
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards, minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.engine.optimizers import AdamW
from fedsim.engine.replay import Program
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy
from fedsim.types import Batch

DOUBLE = torch.float64
SIZES = (4, 18, 7, 12, 15, 8)
WORK = LocalWork(batch_size=5, epochs=2)
REGULAR = LocalWork(batch_size=5, weight_decay=0.1, clip_norm=0.2)


def network(kind: str = "dense") -> nn.Module:
    torch.manual_seed(0)
    if kind != "convolutional":
        width = 8 if kind == "dense" else 5000
        return nn.Sequential(nn.Linear(6, width, bias=False), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4, momentum=0.3, affine=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def federation(backend: Any, work: LocalWork = WORK, kind: str = "dense", sizes: tuple[int, ...] = SIZES) -> Federation:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 6, generator=generator, dtype=DOUBLE)
    y = torch.randint(0, 3, (sum(sizes),), generator=generator)
    model = Model(network(kind), cross_entropy, dtype=DOUBLE)
    examine(model, Split(x, y))
    return Federation(model, Shards(x, y, np.r_[0, np.cumsum(sizes)]), work, 0, backend)


def trained(fed: Federation, algorithm: Any, rounds: int = 3) -> Tensor:
    state = algorithm.init(fed.model.vector(), cohort(fed, 0))
    for round in range(1, rounds + 1):
        ids = np.array([0, 1, 3, 5]) if round == 2 and fed.shards.n > 1 else None
        state = algorithm.round(state, cohort(fed, round, ids))
    return state.x  # type: ignore[no-any-return]


def test_they_follow_the_parameters_in_the_vector() -> None:
    model = federation(Loop()).model
    assert list(model.statistics) == ["1.running_mean", "1.running_var"] and model.mixes and model.dense is None
    assert model.d == 48 + 16 + 27 + 16 and model.learned is not None and model.learned.sum() == 48 + 16 + 27
    x = model.vector()
    assert x[~model.learned].tolist() == [0.0] * 8 + [1.0] * 8
    model.load(torch.arange(model.d, dtype=DOUBLE))
    assert model.vector().tolist() == list(range(model.d))


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_one_client_is_plain_training(kind: str) -> None:
    fed = federation(Loop(), kind=kind, sizes=(18,))
    module = network(kind).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for round in (1, 2, 3):
        (plan,) = minibatches(fed.work, fed.shards, 0, round, np.array([0]))
        for rows, length in zip(plan.index, plan.lengths, strict=True):
            optimizer.zero_grad()
            index = torch.from_numpy(rows[:length])
            F.cross_entropy(module(fed.shards.x[index]), fed.shards.y[index]).backward()  # type: ignore[index]
            optimizer.step()
    x = trained(fed, FedAvg(lr=0.2))
    loaded, expected = fed.model.load(x).state_dict(), module.state_dict()
    for name in expected.keys() - {name for name in expected if name.endswith("num_batches_tracked")}:
        torch.testing.assert_close(loaded[name], expected[name], rtol=0, atol=1e-14)
    outputs = fed.model.outputs(x, fed.shards.x)
    torch.testing.assert_close(outputs, module.eval()(fed.shards.x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("algorithm", "work"),
    [
        (FedAvg(lr=0.2), WORK),
        (FedAvg(lr=0.2), LocalWork(0, steps=2)),
        (FedAvg(lr=0.01), LocalWork(5, optimizer=AdamW())),
        (FedAvg(lr=0.2), REGULAR),
        (FedAvg(lr=0.2), replace(REGULAR, weight_decay_mode="step", clip_mode="direction")),
        (FedSAM(lr=0.2, rho=0.1), WORK),
        (Scaffold(lr=0.1), WORK),
        (Scaffold(lr=0.1, option="I"), LocalWork(5, optimizer=AdamW(state="keep"))),
        (FedCM(lr=0.1), WORK),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_blocks_are_the_loop(kind: str, algorithm: Any, work: LocalWork) -> None:
    """With ragged minibatches, which run client by client, and equal ones, which do not."""
    loop = trained(federation(Loop(), work, kind), algorithm)
    for size in (4, 25):
        blocks = trained(federation(Blocks(size), work, kind), algorithm)
        torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-10 if work.optimizer != WORK.optimizer else 1e-12)
    assert not torch.equal(loop[-16:], federation(Loop(), kind=kind).model.vector()[-16:])


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.2), FedSAM(lr=0.2, rho=0.1)])
def test_steps_by_parts_of_a_wide_model(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a recorded step runs parameter by parameter, statistics included."""
    by_parts: list[int] = []
    run_tail = Program._run_tail
    monkeypatch.setattr(Program, "_run_tail", lambda *args: (by_parts.append(1), run_tail(*args))[1])
    sizes, work = (10,) * 6, LocalWork(5)
    loop, blocks = (trained(federation(b, work, "wide", sizes), algorithm) for b in (Loop(), Blocks(6)))
    assert by_parts
    torch.testing.assert_close(blocks, loop, rtol=0, atol=1e-11)


def test_a_step_takes_over_those_of_its_first_gradient() -> None:
    fed = federation(Loop(), LocalWork(5, steps=1))
    model = fed.model
    assert model.learned is not None
    x = model.vector()

    def client(local: Any, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch) -> Tensor:
            g = local.grad(y, batch)
            also = local.grad(y + 10 * g, batch)           # at other activations
            return local.descend(y, also + 1e6, 0.1)       # a correction, of all coordinates

        return local.fold(step, x)  # type: ignore[no-any-return]

    (plan,) = minibatches(fed.work, fed.shards, 0, 1, np.array([1]))
    new = model.gradient(x, fed.shards.take(torch.from_numpy(plan.index[0])))[~model.learned]
    for backend in (Loop(), Blocks(2)):
        found = cohort(federation(backend, LocalWork(5, steps=1)), 1, np.array([1, 3])).each(client, x).stacked[0]
        torch.testing.assert_close(found[~model.learned], new, rtol=0, atol=1e-14)
        assert (found[model.learned] - x[model.learned]).abs().min() > 1e4


def test_a_gradient_has_zeros_there_and_no_decay_or_clipping_counts_them() -> None:
    work = LocalWork(5, steps=1, weight_decay=0.5, clip_norm=1e-3)
    for backend in (Loop(), Blocks(2)):
        fed = federation(backend, work)
        assert fed.model.learned is not None
        for client in (lambda local, x: local.grad(x), lambda local, x: local.grad(x, local.sample(4))):
            g = cohort(fed, 1).each(client, 0 * fed.model.vector() + 1).stacked
            assert not g[:, ~fed.model.learned].any()
            norms = (g[:, fed.model.learned] - 0.5).norm(dim=1)
            torch.testing.assert_close(norms, torch.full((6,), 1e-3, dtype=DOUBLE), rtol=1e-2, atol=0)


def test_they_are_charged() -> None:
    fed = federation(Loop())
    meter = Meter(fed)
    FedAvg().round(FedAvg().init(fed.model.vector(), cohort(fed, 0)), cohort(fed, 1, meter=meter))
    assert (meter.ledger.up > 8 * fed.model.d).all() and (meter.ledger.up < 8 * fed.model.d + 100).all()


def test_a_penalty_knows_nothing_of_them() -> None:
    with pytest.raises(ModelError, match="a penalty is a function of parameters alone"):
        Model(network(), cross_entropy, lambda x: x.sum())
