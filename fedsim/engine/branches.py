"""Several clients on a GPU at the same time: branches, each a CUDA stream with a model and graphs of its own.

One Python thread launches them all: a launch does not wait for the GPU, which then runs what is in its streams side by
side. Streams begin when the caller's has come so far (it has uploaded the plans of the cohort), and it waits for them
before it reads a result. They go on when it has read: memory of a result that is freed is given to whoever allocates
next on the stream that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.federation import Federation
from fedsim.engine.model import Model
from fedsim.engine.threads import copies

R = TypeVar("R")

AT_A_TIME = 8
"""Clients for each branch that run before any result is read: all messages of a large cohort need not fit."""


@dataclass(eq=False)
class Branch:
    """Clients that run one after the other, beside those of other branches.

    Args:
        model: nobody else's while they run: its parameters point at this branch's tensors.
        stream: of all that they launch, captures included, as cuBLAS has a workspace for each stream.
        pool: memory of the graphs, of which no two run at the same time, and no result outlives a step.
        graphs: captured steps, see ``fedsim.engine.captured``; None for those that cannot be.
        held: carry and constants of each step that they read and write.
    """

    model: Model
    stream: torch.cuda.Stream
    pool: Any
    graphs: dict[Hashable, Any] = field(default_factory=dict)
    held: dict[Hashable, list[Tensor]] = field(default_factory=dict)


def branches_of(model: Model, count: int) -> list[Branch]:
    """Branches with a model and copies of it."""
    return [
        Branch(mine, torch.cuda.Stream(model.device), torch.cuda.graph_pool_handle())  # type: ignore[no-untyped-call]
        for mine in copies(model, count)
    ]


def in_branches(
    federation: Federation, branches: Sequence[Branch], costs: np.ndarray, run: Callable[[Federation, int], R]
) -> Generator[R, None, None]:
    """Yield ``run(federation, i)`` of every client i of ``costs [c]``, in their order; the federation has the model of
    a branch. The longest go first, each to the branch with least to do, which no result depends on.
    """
    here = torch.cuda.current_stream(federation.model.device)
    federations = [replace(federation, model=branch.model) for branch in branches]
    loads, held = np.zeros(len(branches)), dict[int, R]()
    together = AT_A_TIME * len(branches)
    try:
        for begin in range(0, len(costs), together):
            for branch in branches:
                branch.stream.wait_stream(here)
            some = range(begin, min(begin + together, len(costs)))
            for i in sorted(some, key=lambda i: -costs[i]):
                at = int(loads.argmin())
                loads[at] += costs[i]
                with torch.cuda.stream(branches[at].stream):
                    held[i] = run(federations[at], i)
            for branch in branches:
                here.wait_stream(branch.stream)
            for i in some:
                yield held.pop(i)
    finally:                                               # after an error, too: what they read is freed then
        for branch in branches:
            here.wait_stream(branch.stream)
