"""What a step reads besides its tensors is part of it: a recording made in one round must not stand for another."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Batch, Local
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend
from fedsim.engine.fingerprint import fingerprint
from fedsim.engine.local_work import LocalWork
from fedsim.engine.loop import Loop
from fedsim.engine.tape import Unreplayable
from tests.engine.test_replay import assert_same, federation

RATE = 0.1

RATES = {"rate": 0.1}

rate_of = RATES.get

settings = ModuleType("settings")


class Settings:
    rate = 0.1


@dataclass(frozen=True)
class Rule:
    """Its rate is written elsewhere."""

    factor: float

    def __call__(self, g: Tensor) -> Tensor:
        return self.scaled(g) * self.half

    def scaled(self, g: Tensor) -> Tensor:
        return self.factor * RATE * g

    @cached_property
    def half(self) -> float:
        return 0.5


def scaled(g: Tensor) -> Tensor:
    rate: float = scaled.rate  # type: ignore[attr-defined]
    return rate * g


def by_keyword(rate: float) -> Callable[[Tensor], Tensor]:
    def scale(g: Tensor, *, rate: float = rate) -> Tensor:
        return rate * g

    return scale


RULES: dict[str, Callable[[float], Callable[[Tensor], Tensor]]] = {
    "keyword default": by_keyword,
    "global in a comprehension": lambda rate: lambda g: sum([RATE * h for h in [g]], torch.zeros_like(g)),
    "global in a method": lambda rate: Rule(2.0),
    "attribute of a class": lambda rate: lambda g: Settings.rate * g,
    "attribute of a module": lambda rate: lambda g: settings.rate * g,
    "attribute of a function": lambda rate: scaled,
    "method of a dict": lambda rate: lambda g: rate_of("rate", 0.0) * g,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_numbers_that_change_between_rounds(
    rule: Callable[[float], Callable[[Tensor], Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def messages(backend: Backend) -> list[Tensor]:
        fed, found = federation(backend), list[Tensor]()
        x = fed.model.vector()
        for round, rate in ((1, 0.1), (2, 0.2)):
            monkeypatch.setattr(sys.modules[__name__], "RATE", rate)
            monkeypatch.setitem(RATES, "rate", rate)
            for holder in (settings, Settings, scaled):
                monkeypatch.setattr(holder, "rate", rate, raising=False)
            scale = rule(rate)

            def client(local: Local, x: Tensor, scale: Callable[[Tensor], Tensor] = scale) -> Tensor:
                return local.fold(lambda y, batch: y - scale(local.grad(y, batch)), x)

            found.append(cohort(fed, round).each(client, x).stacked)
        return found

    for want, got in zip(messages(Loop()), messages(Blocks(3)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Pair(NamedTuple):
    y: Tensor
    m: Tensor


class Swapped(NamedTuple):
    m: Tensor
    y: Tensor


READS: list[Callable[[Tensor], Any]] = [Tensor.tolist, lambda t: float(t.numpy()), lambda t: float(f"{t:.3f}")]
READS += [lambda t: float(repr(t)[7:11]), Tensor.item, lambda t: 0.1 if t > 0.15 else 0.3]


@pytest.mark.parametrize("read", READS)
def test_values_that_become_python_numbers(read: Callable[[Tensor], Any]) -> None:
    def messages(backend: Backend) -> list[Tensor]:
        fed = federation(backend)
        x = fed.model.vector()

        def client(local: Local, down: tuple[Tensor, Tensor]) -> Tensor:
            x, rate = down
            return local.fold(lambda y, batch, rate: y - read(rate) * local.grad(y, batch), x, rate)

        rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
        return [cohort(fed, 1).each(client, (x, rate)).stacked for rate in rates]

    for want, got in zip(messages(Loop()), messages(Blocks(3)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_thresholds_of_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engine.test_replay.SIZES", np.full(4, 10))

    def client(local: Local, x: Tensor) -> Tensor:
        return local.fold(lambda y, batch: y - (0.1 if len(batch.y) > 2 else 0.3) * local.grad(y, batch), x)

    assert_same(client, 4, LocalWork(4))


def test_arguments_under_other_names() -> None:
    def step(carry: Any, batch: Batch) -> Any:
        return carry._replace(y=carry.y - 0.1 * carry.m)

    def client(local: Local, x: Tensor) -> Tensor:
        first, then = local.fold(step, Pair(x, 2 * x + 1)), local.fold(step, Swapped(x, 2 * x + 1))
        return torch.stack([*first, *then])

    assert_same(client, 4)


def test_steps_that_count_themselves() -> None:
    def client(local: Local, x: Tensor) -> Tensor:
        k = 0

        def step(y: Tensor, batch: Batch) -> Tensor:
            nonlocal k
            k += 1
            return y - 0.1 / k * local.grad(y, batch)

        return local.fold(step, x)

    assert_same(client, 1)
    assert_same(client, 4)


@pytest.mark.parametrize("what", ["constant", "inputs"])
def test_steps_that_write_into_their_arguments(what: str) -> None:
    """An attempt to record them leaves no trace."""

    def client(local: Local, x: Tensor) -> Tensor:
        def step(y: Tensor, batch: Batch, c: Tensor) -> Tensor:
            (c if what == "constant" else batch.x).mul_(0.5)  # type: ignore[union-attr]
            return y - 0.1 * local.grad(y, batch) + c

        return local.fold(step, x, x + local.steps)

    assert_same(client, 1)
    assert_same(client, 4)


def test_a_clock_is_not_recognised() -> None:
    with pytest.raises(Unreplayable, match="function of time"):
        fingerprint(lambda y: y * time.time(), None)
