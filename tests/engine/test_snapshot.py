"""Snapshots see every change of what a module holds, name it, and take it back."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.engine.snapshot import Snapshot, alike


class Meter:
    """Somebody's own object."""

    def __init__(self) -> None:
        self.total = 0.0

    def add(self, x: float) -> None:
        self.total += x


def counter() -> Callable[[], int]:
    count = 0

    def more() -> int:
        nonlocal count
        count += 1
        return count

    return more


class Holder(nn.Module):
    """A module that holds one of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.calls, self.rate = 0, 0.5
        self.tensor, self.array = torch.zeros(3), np.zeros(3)
        self.seen, self.last, self.names = [1.0], deque([1], maxlen=4), {"a"}
        self.cache: dict[str, Any] = {"a": [torch.zeros(2)]}
        self.meter, self.more = Meter(), counter()
        self.add = partial(self.meter.add, 2.0)
        self.draws = torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)
        self.forever = self                                # a circle


def fill(t: Any) -> None:
    with torch.no_grad():
        t.fill_(7)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "buffer": (lambda m: fill(m.body[1].running_mean), "body.1.running_mean"),
    "buffer replaced": (lambda m: setattr(m.body[1], "running_var", torch.zeros(2)), "body.1.running_var"),
    "scratch": (lambda m: fill(m.scratch), "scratch"),
    "new buffer": (lambda m: m.register_buffer("new", torch.zeros(1)), "new"),
    "number": (lambda m: setattr(m, "calls", 1), "calls"),
    "float": (lambda m: setattr(m, "rate", 0.25), "rate"),
    "tensor": (lambda m: fill(m.tensor), "tensor"),
    "another tensor": (lambda m: setattr(m, "tensor", torch.ones(3)), "tensor"),
    "new attribute": (lambda m: setattr(m.body[0], "hidden", torch.ones(3)), "body.0.hidden"),
    "gone": (lambda m: delattr(m, "rate"), "rate"),
    "array": (lambda m: m.array.fill(7), "array"),
    "list": (lambda m: m.seen.append(2.0), "seen[1]"),
    "deque": (lambda m: m.last.append(2), "last[1]"),
    "set": (lambda m: m.names.add("b"), "names"),
    "dict": (lambda m: m.cache.update(b=1), "cache['b']"),
    "within": (lambda m: fill(m.cache["a"][0]), "cache['a'][0]"),
    "object": (lambda m: m.meter.add(1.0), "meter.total"),
    "method": (lambda m: m.add(), "meter.total"),
    "closure": (lambda m: m.more(), "more (its variable count)"),
    "hook": (lambda m: m.body[0].register_forward_hook(print), "body.0._forward_hooks"),
    "mode": (lambda m: m.body[1].eval(), "body.1.training"),
    "torch": (lambda m: torch.rand(1, generator=m.draws[0]), "draws[0]"),
    "numpy": (lambda m: m.draws[1].random(), "draws[1]"),
    "old numpy": (lambda m: m.draws[2].rand(), "draws[2]"),
    "random": (lambda m: m.draws[3].random(), "draws[3]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_named_and_taken_back(what: str) -> None:
    change, name = CHANGES[what]
    module = Holder()
    before = Snapshot({"": module})
    assert not before.differences(Snapshot({"": module}))
    change(module)
    found = before.differences(Snapshot({"": module}))
    assert found and all(each.startswith(name) for each in found)
    before.restore()
    assert not before.differences(Snapshot({"": module}))


def test_restoring_writes_into_the_same_objects() -> None:
    module = Holder()
    held = module.cache, module.body[1].running_mean, module.seen
    before = Snapshot({"": module})
    for change, _ in CHANGES.values():
        change(module)
    before.restore()
    assert held[0] is module.cache and held[1] is module.body[1].running_mean and held[2] is module.seen
    assert module.cache["a"][0].eq(0).all() and module.body[1].running_mean.eq(0).all()  # type: ignore[operator, union-attr]
    assert module.more() == 1 and isinstance(module.body[0]._forward_hooks, OrderedDict)


def test_frozen_parameters_are_noted_and_trained_ones_are_not() -> None:
    module = Holder()
    before = Snapshot({"": module})
    fill(module.body[0].weight)
    assert not before.differences(Snapshot({"": module}))
    fill(module.frozen)
    assert before.differences(Snapshot({"": module})) == ["frozen"]
    module.body[0].weight = nn.Parameter(torch.zeros(2, 3))
    assert "body.0.weight" in before.differences(Snapshot({"": module}))


def test_what_has_not_changed_is_not_written() -> None:
    """An expanded tensor cannot be."""
    holder = Meter()
    holder.total = torch.zeros(1).expand(3)  # type: ignore[assignment]
    Snapshot({"": holder}).restore()


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "same"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), 0.0, True),
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.1, -torch.inf]), 0.2, True),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, -torch.inf]), 0.2, False),
        (torch.tensor([1.0, 100.0]), torch.tensor([1.5, 100.0]), 0.01, True),
        (torch.tensor([1.0, 100.0]), torch.tensor([1.5, 100.0]), 0.001, False),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), 1.0, False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), 1.0, False),
        (torch.zeros(2), torch.zeros(1, 2), 1.0, False),
        (float("nan"), float("nan"), 0.0, True),
        (1.0, 1.001, 0.01, True),
        (1, 1.0, 1.0, False),
    ],
)
def test_alike(a: Any, b: Any, tolerance: float, same: bool) -> None:
    assert alike(a, b, tolerance) is same
    assert isinstance(a, Tensor) or alike(b, a, tolerance) is same
