"""Where the messages of a cohort go as clients, or blocks of them, finish: into one stack, or into sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fedsim.engine.federation import Backend, ClientCall, Federation, Meter
from fedsim.errors import title
from fedsim.messages.summed import Summed
from fedsim.tree import leaves, tree_map

M = TypeVar("M")

SUMMED_FROM = 2**26
"""Bytes of one vector for each client from which messages are added up as they come; fewer are a stack."""


class Rows(Generic[M]):
    """Messages of a cohort, collected block by block into one stack ``[c, ...]`` per tensor."""

    def __init__(self, c: int) -> None:
        self.c = c
        self.stacked: Any = None

    def put(self, block: M, positions: list[int], there: Tensor | None = None) -> None:
        """Write the rows of ``block`` (tensors ``[b, ...]``) at ``positions``; ``there`` are the same on the device."""
        run = range(positions[0], positions[0] + len(positions))
        index = positions if there is None else there
        where = slice(run.start, run.stop) if positions == list(run) else index  # a slice is faster
        if len(positions) == self.c and isinstance(where, slice):
            self.stacked = tree_map(Tensor.contiguous, block)
            return
        if self.stacked is None:
            self.stacked = tree_map(lambda t: t.new_empty(self.c, *t.shape[1:]), block)
        for to, rows in zip(leaves(self.stacked), leaves(block), strict=True):
            to[where] = rows


def sums_of(
    backend: Backend, federation: Federation, meter: Meter, call: ClientCall, order: Sequence[int]
) -> Summed | None:
    """Where a backend adds up the messages of a call; None if they are kept.

    Args:
        backend: runs the call again if the messages are read after all. The meter remembers that they were.
        federation: of the call.
        meter: of the call; running again costs it nothing.
        call: says whether messages may be added up.
        order: ``[c]`` positions in the order of execution.
    """
    model = federation.model
    if not call.summed or len(call.ids) * model.d * model.dtype.itemsize < SUMMED_FROM:
        return None

    def again() -> Any:
        meter.read.add(title(call.fn))
        messages, _ = backend.run(federation, Meter(federation), call._replace(summed=False))
        return messages

    return Summed(torch.from_numpy(federation.shares(call.ids)), order, model.device, again)
