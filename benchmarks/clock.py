"""What a clock costs: in a synchronous round, and in an asynchronous run of a million events without training.

    python -m benchmarks.clock

The round is that of FedAvg on 10 of 100 clients (MLP 64-100-10, 10 steps with batches of 20), with and without a clock
in turns; the least time of each is compared, as neighbours on a shared machine disturb either.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from algorithms import FedAvg
from fedsim.clients import cohort
from fedsim.clock import Clock
from fedsim.clock.events import Events
from fedsim.clock.virtual import VirtualClock
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.model import Model
from fedsim.messages.trace import Computed, Uploaded
from fedsim.models import MLP
from fedsim.models.losses import cross_entropy


def federation() -> Federation:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 64, generator=generator), torch.randint(0, 10, (20_000,), generator=generator)
    shards = Shards(x, y, np.arange(0, 20_001, 200))
    model = Model(MLP(hidden=(100,)).build((64,), 10), cross_entropy)
    return Federation(model, shards, LocalWork(batch_size=20, steps=10), 0, Blocks(10))


def rounds(clock: bool, count: int) -> float:
    """Least seconds of a round among ``count``."""
    fed = federation()
    meter, virtual = Meter(fed), VirtualClock(Clock().devices(100, 0))
    state, least = FedAvg().init(fed.model.vector(), cohort(fed, 0)), float("inf")
    for t in range(1, count + 1):
        ids = np.sort(np.random.default_rng(t).choice(100, 10, replace=False))
        begun = time.perf_counter()
        meter.trace = [] if clock else None
        state = FedAvg().round(state, cohort(fed, t, ids, meter))
        if clock:
            virtual.advance(meter.trace or [], t)
        least = min(least, time.perf_counter() - begun)
    return least


def fold(clients: int, taking_part: int, count: int = 300) -> float:
    """Least seconds of the clock's own work in a round of a large population."""
    virtual, least = VirtualClock(Clock().devices(clients, 0)), float("inf")
    for t in range(1, count + 1):
        ids = np.sort(np.random.default_rng(t).choice(clients, taking_part, replace=False))
        size, evaluations = np.full(taking_part, 30_000), np.full(taking_part, 200)
        begun = time.perf_counter()
        virtual.advance([Computed(ids, size, evaluations), Uploaded(ids, size, 0.0)], t)
        least = min(least, time.perf_counter() - begun)
    return least


def events(count: int, clients: int = 100_000, concurrency: int = 1000) -> float:
    """Seconds of the events of an asynchronous run: choose, start and receive clients, one at a time."""
    seconds = np.random.default_rng(0).lognormal(1.0, 0.8, clients).tolist()
    made, begun = Events(clients, concurrency, 0), time.perf_counter()
    for version in range(count):
        nodes = made.choose()
        made.start(nodes, [seconds[node] for node in nodes], version)
        made.next()
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds in each turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--events", type=int, default=1_000_000, help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    without, timed = [], []
    for _ in range(options.turns):
        without.append(rounds(False, options.rounds))
        timed.append(rounds(True, options.rounds))
    a, b = min(without), min(timed)
    print(f"round of 10 of 100 clients: {a * 1e3:.2f} ms, with a clock {b * 1e3:.2f} ms: {100 * (b / a - 1):+.1f} %")
    for clients, taking_part in ((100, 10), (1000, 100), (100_000, 1000)):
        print(f"the clock alone, {taking_part} of {clients} clients: {fold(clients, taking_part) * 1e6:.0f} us a round")
    print(f"{options.events:,} events, 1,000 of 100,000 clients at a time: {events(options.events):.1f} s")


if __name__ == "__main__":
    main()
