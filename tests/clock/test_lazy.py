"""A clock that looks at several rounds at once says what one says that looks at each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.clock.lazy import MOST_ROUNDS, LazyClock
from fedsim.clock.virtual import VirtualClock
from fedsim.errors import ConfigError
from fedsim.messages.trace import Computed, Phase, Uploaded
from fedsim.record.timeline import Timeline
from tests.clock.test_virtual import SPREAD


def trace(round: int, scale: int = 1) -> list[Phase]:
    ids = np.array([round % SPREAD.n, (round + 2) % SPREAD.n])
    return [Computed(ids, np.full(2, 40), np.array([5, 9]) * scale), Uploaded(ids, np.full(2, 20), round % 2 / 2)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_moment_is_that_of_a_clock_that_looks_at_each_round() -> None:
    """Moments are asked for late, after rounds have been followed that came later."""
    eager, lazy = VirtualClock(SPREAD), LazyClock(VirtualClock(SPREAD), lazy=True)
    moments: list[tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]] = []
    for t in range(1, MOST_ROUNDS + 20):
        eager.advance(seen := trace(t), t)
        lazy.advance(seen, t)
        seen.clear()                                       # as a run does
        moments.append((eager.snapshot(), lazy.freeze()))
        if t % 7 == 0:
            assert lazy.now == eager.now
    assert all(same(there, frozen()) for there, frozen in moments)
    assert same(lazy.settle().snapshot(), eager.snapshot())


def test_it_looks_when_it_is_looked_at_or_has_many_rounds() -> None:
    clock = VirtualClock(SPREAD)
    lazy = LazyClock(clock, lazy=True)
    lazy.advance(trace(1), 1)
    assert clock.now == 0 and lazy.now > 0 and clock.now == lazy.now
    begun = clock.now
    for t in range(2, MOST_ROUNDS + 1):
        lazy.advance(trace(t), t)
        assert clock.now == begun
    lazy.advance(trace(MOST_ROUNDS + 1), MOST_ROUNDS + 1)
    assert clock.now > begun


def test_it_looks_at_each_round_for_others_and_for_a_timeline(tmp_path: Path) -> None:
    eager, recorded = VirtualClock(SPREAD), VirtualClock(SPREAD)
    one, other = LazyClock(eager, lazy=False), LazyClock(recorded, lazy=True)
    other.timeline = timeline = Timeline(tmp_path / "timeline.csv", 0)
    for t in (1, 2):
        one.advance(trace(t), t)
        other.advance(trace(t), t)
        assert eager.now == recorded.now > 0 and timeline.spans[-1].round == t


def test_a_moment_goes_on_and_a_time_that_is_too_late_is_named_by_its_round() -> None:
    lazy = LazyClock(VirtualClock(SPREAD), lazy=True)
    for t in (1, 2):
        lazy.advance(trace(t), t)
    there = lazy.freeze()
    lazy.advance(trace(3, scale=10**12), 3)
    late = lazy.freeze()
    lazy.advance(trace(4), 4)
    with pytest.raises(ConfigError, match="round 3 ends after"):
        lazy.settle()
    other = LazyClock(VirtualClock(SPREAD), lazy=True)
    other.restore(there())
    assert same(other.freeze()(), there()) and late()["at"].max() > 9e9
