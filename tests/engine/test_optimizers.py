"""Local optimisers: those of ``torch.optim``, on every backend, with their state reset or kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim import SGD, Adagrad, Adam, AdamW, Batch, HeavyBall, Local, LocalWork, Nesterov, RMSprop
from fedsim.clients import cohort
from fedsim.controller.keeping import Keeping
from fedsim.engine import dense_fold, replay, step
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.fused import KERNELS, FusedStep
from fedsim.engine.local_work import minibatches
from fedsim.engine.loop import Loop
from fedsim.engine.optimizers import OPTIMIZERS
from fedsim.engine.step_schedules import CosineSteps
from fedsim.errors import ConfigError
from fedsim.models.losses import cross_entropy
from fedsim.record.checkpoint import load_latest, save
from fedsim.record.state import flatten, restore
from fedsim.tree import leaves
from tests.engine.test_replay import SIZES, federation

LR = 0.05
TORCH: dict[Any, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    SGD(): lambda p: torch.optim.SGD(p, LR),
    HeavyBall(0.8): lambda p: torch.optim.SGD(p, LR, momentum=0.8),
    Nesterov(0.8): lambda p: torch.optim.SGD(p, LR, momentum=0.8, nesterov=True),
    Adam(0.8, 0.99, 1e-6): lambda p: torch.optim.Adam(p, LR, (0.8, 0.99), 1e-6),
    Adam(0.0, 0.0): lambda p: torch.optim.Adam(p, LR, (0.0, 0.0)),
    AdamW(weight_decay=0.3): lambda p: torch.optim.AdamW(p, LR, weight_decay=0.3),
    RMSprop(0.9): lambda p: torch.optim.RMSprop(p, LR, 0.9),
    Adagrad(): lambda p: torch.optim.Adagrad(p, LR),
}
WORK = LocalWork(8, epochs=2)
COHORTS = (np.array([0, 1, 3, 4]), np.array([1, 2, 4, 5]), np.array([1, 3, 5]))


class InTorch:
    """FedAvg of plain PyTorch training, with one optimiser for each client."""

    def __init__(self, fed: Federation, make: Callable[..., torch.optim.Optimizer], keep: bool) -> None:
        self.fed, self.make, self.keep = fed, make, keep
        self.known: dict[int, Any] = {}                    # state_dicts by client

    def trained(self, x: Tensor, round: int, node: int) -> Tensor:
        module = copy.deepcopy(self.fed.model.module)
        nn.utils.vector_to_parameters(x.clone(), module.parameters())
        optimizer = self.make(module.parameters())
        if self.keep and node in self.known:
            optimizer.load_state_dict(self.known[node])
        (plan,) = minibatches(WORK, self.fed.shards, self.fed.seed, round, np.array([node]))
        for rows, length in zip(plan.index, plan.lengths, strict=True):
            batch = self.fed.shards.take(torch.from_numpy(rows[:length]))
            optimizer.zero_grad()
            cross_entropy(module(batch.x), batch.y).mean().backward()
            optimizer.step()
        self.known[node] = copy.deepcopy(optimizer.state_dict())
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    def run(self, x: Tensor) -> list[Tensor]:
        states = []
        for round, ids in enumerate(COHORTS, 1):
            x = torch.stack([self.trained(x, round, int(i)) for i in ids]).mean(0)
            states.append(x)
        return states


def rounds(fed: Federation, algorithm: Any, meter: Meter | None = None) -> list[Any]:
    state, states = algorithm.init(fed.model.vector(), cohort(fed, 0, meter=meter)), []
    for round, ids in enumerate(COHORTS, 1):
        state = algorithm.round(state, cohort(fed, round, ids, meter))
        states.append(state)
    return states


def working(optimizer: Any, backend: Any) -> Federation:
    return federation(backend, LocalWork(8, epochs=2, optimizer=optimizer))


@pytest.mark.parametrize("backend", [Loop(), Blocks(4), Blocks(1)], ids=["loop", "blocks", "blocks of 1"])
@pytest.mark.parametrize("optimizer", TORCH, ids=str)
@pytest.mark.parametrize("least", [0, replay.LEAST_PART], ids=["in parts", "whole"])
def test_they_are_those_of_torch(
    optimizer: Any, backend: Any, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "LEAST_PART", least)
    fed = working(optimizer, backend)
    want = InTorch(fed, TORCH[optimizer], keep=False).run(fed.model.vector())
    for a, b in zip(want, rounds(fed, FedAvg(LR)), strict=True):
        torch.testing.assert_close(b.x, a, rtol=0, atol=1e-12)
    assert {type(o) for o in TORCH} == set(OPTIMIZERS)


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
@pytest.mark.parametrize("optimizer", [AdamW(state="keep"), HeavyBall(state="keep")], ids=str)
def test_a_kept_state_goes_on_at_its_client_and_never_travels(optimizer: Any, backend: Any) -> None:
    """Under partial participation each client counts its own steps."""
    fed, reset = working(optimizer, backend), working(optimizer, backend)
    make = {AdamW: lambda p: torch.optim.AdamW(p, LR), HeavyBall: lambda p: torch.optim.SGD(p, LR, momentum=0.9)}
    want = InTorch(fed, make[type(optimizer)], keep=True).run(fed.model.vector())
    meter, meter_of_reset = Meter(fed), Meter(reset)
    keeping = Keeping(FedAvg(LR), optimizer.slots(fed.model.zeros()))
    kept, anew = rounds(fed, keeping, meter), rounds(reset, FedAvg(LR), meter_of_reset)
    for a, b in zip(want, kept, strict=True):
        torch.testing.assert_close(b.x, a, rtol=0, atol=1e-12)
    assert (kept[-1].x - anew[-1].x).abs().max() > 1e-3
    for name, costs in meter.ledger.state().items():
        np.testing.assert_array_equal(costs, getattr(meter_of_reset.ledger, name))
    if isinstance(optimizer, AdamW):
        steps = 2 * -(-SIZES // 8)
        taken = np.bincount(np.concatenate(COHORTS), minlength=len(SIZES))
        assert [int(kept[-1].slots[i][2]) for i in range(len(SIZES))] == (steps * taken).tolist()


@pytest.mark.parametrize("backend", [Loop(), Blocks(4)], ids=["loop", "blocks"])
def test_a_kept_state_is_checkpointed(tmp_path: Path, backend: Any) -> None:
    optimizer = AdamW(state="keep")
    fed = working(optimizer, backend)
    algorithm = Keeping(FedAvg(LR), optimizer.slots(fed.model.zeros()))
    _, second, third = rounds(fed, algorithm)
    tensors, memories = flatten(second)
    save(tmp_path, 2, tensors, {}, memories=memories)
    saved = load_latest(tmp_path)
    assert saved is not None and any("slots" in name for name in saved.memories)
    template = algorithm.init(fed.model.vector(), cohort(fed, 0))
    again = algorithm.round(restore(template, saved), cohort(fed, 3, COHORTS[2]))
    assert torch.equal(again.x, third.x)
    for i in range(len(SIZES)):
        torch.testing.assert_close(again.slots[i], third.slots[i], rtol=0, atol=0)


def test_step_sizes_within_a_round_leave_a_step_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel for clients that are equally far in their schedules, and one each for those that are not."""
    sizes: list[float] = []
    kernel = KERNELS[Adam]

    def noted(by: Any, eta: float, *tensors: Tensor) -> None:
        sizes.append(eta)
        kernel(by, eta, *tensors)

    monkeypatch.setitem(KERNELS, Adam, noted)
    work = LocalWork(4, epochs=2, optimizer=Adam(), step_schedule=CosineSteps(floor=0.1))
    loop, blocks = (rounds(federation(backend, work), FedAvg(LR)) for backend in (Loop(), Blocks(4)))
    torch.testing.assert_close(blocks[-1].x, loop[-1].x, rtol=1e-12, atol=1e-12)
    assert len({*sizes}) > 4


def test_the_tape_replays_a_step_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Any] = []
    record = step.LocalStep._record
    monkeypatch.setattr(step.LocalStep, "_record", lambda *a: recorded.append(record(*a)) or recorded[-1])
    monkeypatch.setattr(replay, "LEAST_PART", 0)
    monkeypatch.setattr(dense_fold, "LEAST_STEPS", 10**6)   # or it goes by parameter, without a tape
    rounds(working(AdamW(), Blocks(6)), FedAvg())
    assert recorded and all(isinstance(program._tail[-1].fn, FusedStep) for program in recorded)


@pytest.mark.parametrize("least", [0, replay.LEAST_PART], ids=["in parts", "whole"])
@pytest.mark.parametrize("kind", [Adam, AdamW, HeavyBall, Nesterov, Adagrad, RMSprop])
def test_a_step_may_read_where_it_began(kind: Any, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel in place would overwrite; and a step size for each client, which it does not take."""
    monkeypatch.setattr(replay, "LEAST_PART", least)

    def client(local: Local, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(carry: tuple[Tensor, Tensor], batch: Batch, x: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
            y, before = carry
            new = local.descend(y, local.grad(y, batch) + 0.1 * (before - x), eta)
            return new, y + 0.1 * (new - before)

        first = local.fold(step, (x, x), x, 0.05 * local.decay)
        return local.fold(step, first, x, 0.1 / local.steps)

    loop, blocks = (
        leaves(cohort(fed, 1).each(client, fed.model.vector()).stacked)
        for fed in (working(kind(), backend) for backend in (Loop(), Blocks(4)))
    )
    for a, b in zip(loop, blocks, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Lamb:
    """An optimiser of somebody's own: the length of the step is that of the point."""

    def slots(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.zeros_like(x),)

    def step(self, y: Tensor, g: Tensor, eta: Any, slots: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        m = 0.9 * slots[0] + g
        return y - eta * torch.linalg.vector_norm(y) * m / (torch.linalg.vector_norm(m) + 1e-9), (m,)


class Counting(SGD):
    """An optimiser whose step wants the number of steps too."""

    def step(self, y: Any, g: Any, eta: Any, slots: Any, t: Any) -> Any:  # type: ignore[override]
        return y - eta / t * g, slots


def test_an_optimiser_of_ones_own() -> None:
    loop, blocks = (rounds(working(Lamb(), backend), FedAvg()) for backend in (Loop(), Blocks(4)))
    torch.testing.assert_close(blocks[-1].x, loop[-1].x, rtol=0, atol=1e-12)
    assert (loop[-1].x - rounds(working(SGD(), Loop()), FedAvg())[-1].x).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeavyBall(1.0), r"HeavyBall.momentum is 1.0; expected a number in \[0, 1\)"),
        (lambda: Adam(eps=0), "Adam.eps is 0; expected a finite number above 0"),
        (lambda: AdamW(weight_decay=-1), "AdamW.weight_decay is -1"),
        (lambda: RMSprop(alpha=1), "RMSprop.alpha is 1"),
        (lambda: Adagrad(state="carry"), "Adagrad.state is 'carry'; expected one of 'reset', 'keep'"),   # type: ignore[arg-type]
        (lambda: LocalWork(optimizer=Counting()), r"Counting\.step has parameters .* expected \(y, g, eta, slots"),
        (lambda: LocalWork(optimizer=AdamW), "local.optimizer is <class .*; expected an optimiser such as AdamW"),  # type: ignore[arg-type]
        (lambda: LocalWork(optimizer="AdamW"), "local.optimizer is 'AdamW'; expected"),   # type: ignore[arg-type]
        (lambda: LocalWork(clip_mode="norm"), "local.clip_mode is 'norm'; expected gradient or direction"),   # type: ignore[arg-type]
    ],
)
def test_bad_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
