"""Clients that work at their own pace: who is under way, who is idle, and who arrives next; no models, no messages.

Times are whole nanoseconds, so that equally fast clients arrive at equal times and sums have no order. Ties are broken
by the number of the client.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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
        self._since: list[Arrival | tuple[int, int]] = []  # who has arrived, and who has begun from which idle place

    def choose(self) -> list[int]:
        """Clients for all free places, each drawn uniformly from the idle ones, with one task more; sorted."""
        idle, chosen = self.idle, []
        for _ in range(min(self.concurrency - len(self.under_way), len(idle))):
            block, place = divmod(self.started, DRAWS)
            if block != self._block:
                draws = seeds.uniform(self.seed, "start", block, 0, np.arange(DRAWS))
                self._block, self._draws = block, draws.tolist()
            at = int(self._draws[place] * len(idle))
            idle[at], idle[-1] = idle[-1], idle[at]
            chosen.append(node := idle.pop())
            self.tasks[node] += 1
            self.started += 1
            self._since.append((at, node))
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
        self._since.append(arrival)
        return arrival

    @property
    def at_once(self) -> bool:
        """Whether another message arrives at the same time."""
        return bool(self.under_way) and self.under_way[0].time == self.now

    def mark(self) -> tuple[int, int]:
        """This moment, for `undo`; only the last one counts."""
        self._since.clear()
        return self.now, self.started

    def undo(self, mark: tuple[int, int], version: int) -> None:
        """Go back to a `mark`, since when clients have begun with this ``version``, and with no earlier one."""
        self.under_way = [arrival for arrival in self.under_way if arrival.version < version]
        for entry in reversed(self._since):
            if isinstance(entry, Arrival):
                self.idle.pop()
                self.under_way += [entry] * (entry.version < version)
            else:
                at, node = entry
                self.idle.append(node)
                self.idle[at], self.idle[-1] = self.idle[-1], self.idle[at]
                self.tasks[node] -= 1
        heapq.heapify(self.under_way)
        self.now, self.started = mark
        self._since.clear()

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
