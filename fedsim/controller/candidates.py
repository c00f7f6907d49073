"""Ways to run the clients of a round in this process, from which `fedsim.controller.choose` chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fedsim.engine.blocks import Blocks
from fedsim.engine.captured import Graphs
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.graphed import Graphed
from fedsim.engine.kernels import KERNELS, REFERENCE, Kernels
from fedsim.engine.loop import Loop

SIZES = (1, 5, 10, 25, 50, 100)
"""Block sizes to try."""
LARGER, SMALL_BLOCK = (300, 1000), 2**22
"""Further block sizes for large cohorts, if one vector for each client takes no more than so many bytes."""
STREAMS = (1, 4, 2, 8)
"""Numbers of streams of a GPU to try, the likeliest first."""
MARGIN, CLOSE = 0.95, 0.98
"""Shares of the time of the plain loop, and of the same candidate without another kernel, that must not be exceeded."""


class Candidate(NamedTuple):
    """A way to run clients.

    Attributes:
        size: clients in a block; 0 for the loop.
        threads: clients or blocks at the same time, on threads or, with graphs, on streams of a GPU; 0 for one.
        kernels: what computes the model.
        graphs: whether local steps are CUDA graphs.
    """

    size: int
    threads: int
    kernels: Kernels = REFERENCE
    graphs: bool = False

    @property
    def kind(self) -> str:
        """Name of the backend."""
        return "graphed" if self.graphs else "blocks" if self.size else "loop"

    @property
    def name(self) -> str:
        """Name in the cache and in a manifest."""
        size = [str(self.size)] * (self.size > 0)
        kind = " in blocks of ".join([self.kind, *size]) if self.graphs else str(self.size or self.kind)
        places = f" on {self.threads} {'streams' if self.graphs else 'threads'}" if self.threads else ""
        return ", ".join([kind + places, *self.kernels.names])

    @property
    def backend(self) -> Backend:
        """The backend that runs clients like this."""
        return self.backend_with()

    def backend_with(self, **noted: Any) -> Backend:
        """The same, with graphs that are made as ``Graphs(**noted)``."""
        if self.graphs and not self.size:
            return Graphed(kernels=self.kernels, streams=max(self.threads, 1), **noted)
        graphs = Graphs(**noted) if self.graphs else None
        return Blocks(self.size, self.threads, self.kernels, graphs) if self.size else Loop(self.threads, self.kernels)

    @property
    def recorded(self) -> dict[str, Any]:
        """Its record in a manifest."""
        size = {"block_size": self.size} if self.size else {}
        threads = {"client_threads": self.threads} if self.threads else {}
        kernels = {"kernels": self.kernels.names} if self.kernels.names else {}
        return {"backend": self.kind, **size, **threads, **kernels}


def candidates(federation: Federation, cohort: int, blocks_only: bool, threads: int | None) -> list[Candidate]:
    """Candidates for a cohort, in the order in which to try them.

    On a CPU they run on threads too if there are several clients or blocks and PyTorch has several threads. On a GPU
    their local steps are CUDA graphs too, on several streams or in blocks.
    """
    model, most = federation.model, torch.get_num_threads()
    gpu = model.device.type == "cuda"
    numbers = [0] if gpu else [threads] if threads is not None else [0, most] if most > 1 else [0]
    larger = [size for size in LARGER if size * model.d * model.dtype.itemsize <= SMALL_BLOCK]
    below = [size for size in (*SIZES, *larger) if size < cohort]
    sizes = [*[0] * (not blocks_only), *below, *[cohort] * (cohort <= SIZES[-1])]
    found = [Candidate(size, n) for size in sizes for n in numbers if not n or threads or cohort > (size or 1)]
    if gpu:
        streams = STREAMS if threads is None else (max(threads, 1),)
        graphs = [Candidate(0, n if n > 1 else 0, graphs=True) for n in streams if n <= cohort or threads]
        if blocks_only:
            return found
        replayed = [c._replace(graphs=True) for c in found if c.size > 1 and not threads]
        return sorted([*found[:1], *graphs, *found[1:], *replayed], key=lambda c: c.size)   # without graphs first
    if not model.convolutional:                            # dense networks gain least by threads
        return sorted(found, key=lambda c: c.threads > 0)
    # convolutions gain most in blocks of 1 on threads, and trials of large blocks take longest
    return found[:1] + sorted(found[1:], key=lambda c: (c.size > 1, c.size == 0, not c.threads))


def fastest_of(seconds: dict[str, float], tried: Sequence[Candidate]) -> Candidate:
    """The fastest candidate that was measured, with margins in favour of the plain loop and the reference kernels."""
    every = [candidate._replace(kernels=kernels) for candidate in tried for kernels in KERNELS]

    def at_best(candidate: Candidate) -> float:
        literal = candidate == Candidate(0, 0)
        return seconds[candidate.name] * (MARGIN if literal else 1) / CLOSE ** len(candidate.kernels.names)

    return min((candidate for candidate in every if candidate.name in seconds), key=at_best)
