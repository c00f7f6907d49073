"""The cohort of each round of one seed, where it depends on more than the number of the round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.clock.barrier import Barrier
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.sampling import FixedSize


def cohort(experiment: Experiment, seed: int, round: int, n: int, barrier: Barrier | None) -> np.ndarray:
    """Ids of the clients that the server calls, sorted; with ``waiting.present`` of those that are available then. If
    none is, the clock goes on to the moment at which the first one is.
    """
    sampling = experiment.participation
    if barrier is None or not barrier.rule.present:
        return sampling.cohort(seed, round, n)
    clock = barrier.clock
    begin = clock.devices.begin(np.arange(n), np.full(n, clock.server))
    clock.server = max(clock.server, float(begin.min()))
    there = np.flatnonzero(begin <= clock.server)
    if isinstance(sampling, FixedSize):                    # as many as of all clients
        sampling = replace(sampling, size=min(int(sampling.expected(n)), len(there)))
    ids: np.ndarray = there[sampling.cohort(seed, round, len(there))]
    return ids
