"""Local steps of a block of clients as CUDA graphs, see ``fedsim.engine.captured``: one launch for the whole block.

Clients that have finished keep their rows of the carry, and the graphs of later steps, of fewer clients, have views of
the others' rows. A step that cannot be captured runs as in blocks without graphs.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from fedsim.engine.captured import Graphs
from fedsim.engine.federation import Federation, Meter
from fedsim.engine.plans import BlockPlan
from fedsim.engine.step import LocalStep
from fedsim.engine.tape import Unreplayable
from fedsim.tree import flat
from fedsim.types import Batch, Optimizer


class ReplayedBlock(Protocol):
    """The block of clients whose steps they are."""

    fed: Federation
    meter: Meter
    ids: np.ndarray
    counts: np.ndarray
    optimizer: Optimizer
    met: list[Batch] | None

    @property
    def plan(self) -> BlockPlan:
        """Minibatches of the round."""

    @property
    def active(self) -> list[int]:
        """Number of clients with more than ``k`` steps, for each ``k``; they come first."""

    def take(self, index: Tensor, weight: Tensor | None, key: Tensor) -> Batch:
        """Samples by rows of the data."""


class _Alike(NamedTuple):
    """Steps of the same graph.

    Attributes:
        active: clients that take part.
        width: samples of their minibatches at most.
        ragged: whether some have fewer.
    """

    active: int
    width: int
    ragged: bool


def replayed(
    graphs: Graphs, block: ReplayedBlock, step: LocalStep, state: list[Tensor], consts: list[Tensor], own: list[bool],
    skip: int, last: list[Tensor], shares: bool,
) -> tuple[list[Tensor], int]:  # fmt: skip
    """State of all clients after the steps from ``skip`` on that are graphs, and the number of the first that is none.

    Args:
        graphs: what has been captured so far.
        block: the clients.
        step: the step.
        state: carry of the fold, ``[c, ...]``.
        consts: its constants.
        own: which of them have a row per client.
        skip: number of the first step.
        last: numbers ``[K, c]`` that follow the constants, a row for each step.
        shares: whether shares of the samples are among them.
    """
    branch, plan = graphs.branches_for(block.fed.model)[0], block.plan
    given, carried, k, steps = [*state, *consts], len(state), skip, int(block.counts[0])

    def kind(j: int) -> _Alike:
        return _Alike(block.active[j], int(plan.widths[j]), plan.ragged[j])

    while k < steps:
        form = kind(k)
        part = partial(_rows, form.active, [True] * carried + own)
        stop = next((j for j in range(k, steps) if kind(j) != form), steps)
        now = _now(plan, slice(k, stop), form, last)
        once = partial(_once, block, step, form, carried, own)
        key = shares, *own
        captured = graphs.captured(branch, block.fed, block, step.step, key, once, given, carried, part, now)
        if captured is None:
            break
        given = captured.run(given, now)
        whole, more = captured.charged
        charged = whole * plan.lengths[: form.active, k:stop].sum(1) + more * (stop - k)
        block.meter.ledger.gradient_evaluations[block.ids[: form.active]] += charged
        k = stop
    return given[:carried], k


def _rows(active: int, own: list[bool], tensors: list[Tensor]) -> list[Tensor]:
    """Rows of the first clients, of tensors that have some."""
    return [t[:active] if o else t for t, o in zip(tensors, own, strict=True)]


def _now(plan: BlockPlan, steps: slice, form: _Alike, last: list[Tensor]) -> list[Tensor]:
    """What changes from step to step: rows and keys of the minibatches, weights if they are ragged, and numbers."""
    rows = plan.rows[steps, : form.active, : form.width]
    keys = plan.keys[steps, : form.active]
    weights = [plan.weights[steps, : form.active, : form.width]] if form.ragged else []
    return [rows, keys, *weights, *(of[steps, : form.active] for of in last)]


def _once(
    block: ReplayedBlock, step: LocalStep, form: _Alike, carried: int, own: list[bool],
    given: list[Tensor], now: list[Tensor],
) -> tuple[list[Tensor], tuple[int, int]]:  # fmt: skip
    """A step on fixed addresses; of how many whole minibatches it takes gradients, and of how many samples besides."""
    rows, key, *last = now
    weight = last.pop(0) if form.ragged else None
    batch = block.take(rows, weight, key.expand(-1, form.width))
    block.met = []
    try:
        new = step(batch, given[:carried], given[carried:] + last, own + [True] * len(last))
        return new, _charged(batch, block.met)
    finally:
        block.met = None


def _charged(batch: Batch, met: list[Batch]) -> tuple[int, int]:
    mine, *_ = flat(batch.y)
    whole, more = 0, 0
    for each in met:
        targets, *_ = flat(each.y)
        if targets.data_ptr() == mine.data_ptr() and targets.shape == mine.shape:
            whole += 1
        elif each.weight is None:
            more += targets.shape[1]
        else:
            raise Unreplayable("it takes the gradient of samples that each client has another number of")
    return whole, more
