"""What a clock costs a round, and a million events an asynchronous run; what it gains to compute tasks together.

    python -m benchmarks.clock

The round is that of FedAvg on 10 of 100 clients (MLP 64-100-10, 10 steps with batches of 20), with and without a clock
in turns. The asynchronous tasks are those of FedBuff on the same clients in blocks of 10, computed when they begin and
at the server step. All times are of the processor, and ratios are medians of those of pairs, as neighbours on a shared
machine disturb either.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch

from algorithms import FedAvg, FedBuff
from fedsim.clients import cohort
from fedsim.clock import Clock
from fedsim.clock.lazy import LazyClock
from fedsim.clock.virtual import VirtualClock
from fedsim.controller.asynchronous import Driver
from fedsim.controller.host import Host
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.model import Model
from fedsim.messages.trace import Computed, Uploaded
from fedsim.models import MLP
from fedsim.models.losses import cross_entropy

EVERY = 5
"""Rounds from one evaluation to the next, as by default."""


def federation() -> Federation:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 64, generator=generator), torch.randint(0, 10, (20_000,), generator=generator)
    shards = Shards(x, y, np.arange(0, 20_001, 200))
    model = Model(MLP(hidden=(100,)).build((64,), 10), cross_entropy)
    return Federation(model, shards, LocalWork(batch_size=20, steps=10), 0, Blocks(10))


def rounds(count: int) -> tuple[float, float]:
    """Median processor seconds of a round without a clock, and median ratio of one with a clock to it, in turns.

    As the clock is looked at in every `EVERY`-th round, the ratio is that of so many rounds.
    """
    fed, method = federation(), FedAvg()
    clock = LazyClock(VirtualClock(Clock().devices(100, 0)), lazy=True)
    x, seconds = fed.model.vector(), np.empty((count, 2))
    meters, states = [Meter(fed), Meter(fed)], [method.init(x, cohort(fed, 0))] * 2
    for t in range(1, count + 1):
        ids = np.sort(np.random.default_rng(t).choice(100, 10, replace=False))
        for timed in (0, 1) if t % 2 else (1, 0):
            begun = process_time()
            meters[timed].trace = [] if timed else None
            states[timed] = method.round(states[timed], cohort(fed, t, ids, meters[timed]))
            if timed:
                clock.advance(meters[timed].trace or [], t)
                told = clock.freeze() if t % EVERY else clock.now   # as a run does for its checkpoints, and evaluates
                del told
            seconds[t - 1, timed] = process_time() - begun
    together = seconds[: count // EVERY * EVERY].reshape(-1, EVERY, 2).sum(1)
    return float(np.median(seconds[:, 0])), float(np.median(together[:, 1] / together[:, 0]))


def fold(clients: int, taking_part: int, count: int = 300) -> float:
    """Least seconds of the clock's own work in a round of a large population."""
    virtual, least = VirtualClock(Clock().devices(clients, 0)), float("inf")
    for t in range(1, count + 1):
        ids = np.sort(np.random.default_rng(t).choice(clients, taking_part, replace=False))
        size, evaluations = np.full(taking_part, 30_000), np.full(taking_part, 200)
        begun = process_time()
        virtual.advance([Computed(ids, size, evaluations), Uploaded(ids, size, 0.0)], t)
        least = min(least, process_time() - begun)
    return least


def tasks(together: bool, buffer: int, steps: int) -> float:
    """Least processor seconds of a task of FedBuff among server steps, with twice the buffer under way."""
    fed = federation()
    meter, method = Meter(fed), FedBuff(buffer=buffer)
    driver = Driver(method, fed, meter, Clock().devices(100, 0), 2 * buffer, Host())
    driver.foresight.fails = not together                  # then each is computed when it begins
    state = driver.step(method.init(fed.model.vector(), cohort(fed, 0)))
    least = float("inf")
    for _ in range(steps):
        begun = process_time()
        state = driver.step(state)
        least = min(least, (process_time() - begun) / buffer)
    return least


class Idle(Driver):
    """The events of an asynchronous run without training."""

    def _compute_later(self, state: Any) -> Any:
        self._later.clear()
        return state

    def _arrive(self, state: Any, buffer: Any) -> Any:
        self.version += 1
        return state


def events(count: int, buffer: int = 10, clients: int = 100_000, concurrency: int = 1000) -> float:
    """Processor seconds of so many events of FedBuff on clients of one sample each, with devices and their jitter."""
    x = torch.zeros(clients, 1)
    model = Model(MLP(hidden=(1,)).build((1,), 2), cross_entropy)
    shards = Shards(x, torch.zeros(clients, dtype=torch.int64), np.arange(clients + 1))
    fed = Federation(model, shards, LocalWork(1, steps=1), 0, Blocks(10))
    driver = Idle(FedBuff(buffer=buffer), fed, Meter(fed), Clock().devices(clients, 0), concurrency, Host())
    driver.foresight.costs = 30_000, 1, 30_000
    begun = process_time()
    for _ in range(count // buffer):
        driver.step(None)
    return process_time() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="rounds of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="server steps in each turn (default: %(default)s)")
    parser.add_argument("--events", type=int, default=1_000_000, help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    alone, ratio = rounds(options.rounds)
    print(f"round of 10 of 100 clients: {alone * 1e3:.2f} ms; with a clock {100 * (ratio - 1):+.2f} %")
    for clients, taking_part in ((100, 10), (1000, 100), (100_000, 1000)):
        print(f"the clock alone, {taking_part} of {clients} clients: {fold(clients, taking_part) * 1e6:.0f} us a round")
    for buffer in (1, 5, 10, 20):
        found = [(tasks(False, buffer, options.steps), tasks(True, buffer, options.steps)) for _ in range(3)]
        begun, later = (min(each) * 1e3 for each in zip(*found, strict=True))
        ratio = median(a / b for a, b in found)
        print(f"FedBuff, buffer {buffer}: a task {begun:.2f} ms as it begins, {later:.2f} ms together: {ratio:.1f}")
    print(f"{options.events:,} events, 1,000 of 100,000 clients at a time: {events(options.events):.1f} s")


if __name__ == "__main__":
    main()
