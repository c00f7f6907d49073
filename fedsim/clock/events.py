"""Clients that work at their own pace: who is under way, who is idle, and who arrives next; no models, no messages.

Times are whole nanoseconds, so that equally fast clients arrive at equal times and sums have no order. Ties are broken
by the number of the client.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds

NANO = 10**9
DRAWS = 4096
"""Random numbers drawn at a time."""


class Arrival(NamedTuple):
    """A client under way.

    Attributes:
        time: when its message arrives, in nanoseconds.
        node: the client.
        version: number of server steps when it began.
    """

    time: int
    node: int
    version: int


class Events:
    """Arrivals of ``n`` clients, of which at most ``concurrency`` are under way.

    Attributes:
        now: nanoseconds.
        tasks: ``[n]`` number of tasks that each client has begun.
        under_way: a heap.
    """

    def __init__(self, n: int, concurrency: int, seed: int) -> None:
        self.concurrency, self.seed = concurrency, seed
        self.now, self.started = 0, 0
        self.tasks = np.zeros(n, np.int64)
        self.under_way: list[Arrival] = []
        self.idle = list(range(n))
        self._block, self._draws = -1, list[float]()

    def choose(self) -> list[int]:
        """Clients for all free places, each drawn uniformly from the idle ones; sorted."""
        idle, chosen = self.idle, []
        for _ in range(min(self.concurrency - len(self.under_way), len(idle))):
            block, place = divmod(self.started, DRAWS)
            if block != self._block:
                draws = seeds.uniform(self.seed, "start", block, 0, np.arange(DRAWS))
                self._block, self._draws = block, draws.tolist()
            at = int(self._draws[place] * len(idle))
            idle[at], idle[-1] = idle[-1], idle[at]
            chosen.append(idle.pop())
            self.started += 1
        return sorted(chosen)

    def start(self, nodes: Sequence[int], seconds: Sequence[float], version: int) -> None:
        """Let the chosen clients work, whose messages arrive after ``seconds`` each."""
        for node, each in zip(nodes, seconds, strict=True):
            heapq.heappush(self.under_way, Arrival(self.now + round(each * NANO), node, version))

    def next(self) -> Arrival:
        """The next arrival; its client is idle from then on."""
        arrival = heapq.heappop(self.under_way)
        self.now = arrival.time
        self.idle.append(arrival.node)
        return arrival

    @property
    def at_once(self) -> bool:
        """Whether another message arrives at the same time."""
        return bool(self.under_way) and self.under_way[0].time == self.now

    def mark(self) -> tuple[Any, ...]:
        """This moment, for `undo`."""
        return self.now, self.started, self.tasks.copy(), self.under_way.copy(), self.idle.copy()

    def undo(self, mark: tuple[Any, ...]) -> None:
        """Go back to a `mark`."""
        self.now, self.started, self.tasks, self.under_way, self.idle = mark

    def freeze(self) -> Callable[[], dict[str, Tensor]]:
        """The state as it is now: a function that makes tensors of it, which takes time with many clients."""
        under_way, idle, tasks = self.under_way.copy(), self.idle.copy(), self.tasks.copy()
        counters = [self.now, self.started]

        def named() -> dict[str, Tensor]:
            rows = np.array(sorted(under_way), np.int64).reshape(-1, 3)
            return {
                "under_way": torch.from_numpy(rows),
                "idle": torch.tensor(idle, dtype=torch.int64),
                "tasks": torch.from_numpy(tasks),
                "counters": torch.tensor(counters),
            }

        return named

    def snapshot(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        return self.freeze()()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a `snapshot`."""
        self.under_way = [Arrival(*row) for row in state["under_way"].tolist()]   # sorted, so a heap
        self.idle, self.tasks = state["idle"].tolist(), state["tasks"].numpy().copy()
        self.now, self.started = state["counters"].tolist()
