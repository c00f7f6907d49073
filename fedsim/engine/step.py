"""One local step of a block of clients: recorded when it is first met, replayed ever after.

Recordings are remembered by everything that could make the step do something else: its code, the numbers it captures,
the local work, and the form of its arguments. Steps that cannot be recognised or recorded run under ``torch.vmap`` as
written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedsim.engine.local_work import LocalWork
from fedsim.engine.model import Model
from fedsim.engine.replay import Gradients, Program
from fedsim.engine.tape import Tape, Unreplayable, fingerprint
from fedsim.tree import build, leaves
from fedsim.types import Batch

Programs = dict[Hashable, Program | None]
"""Recordings of one step by the form of its arguments; None where it refuses."""

PROGRAMS: WeakKeyDictionary[Model, dict[Hashable, Programs]] = WeakKeyDictionary()
"""Recordings for every model in use."""

MOST_STEPS = 64
"""Steps remembered for one model; more come only from a step that captures a number of its round."""


class Stack(Gradients, Protocol):
    """The block of clients that a step is for."""

    tape: Tape | None


class LocalStep:
    """``step(carry, batch, *consts)``, written for one client, as a function of stacked tensors.

    Args:
        step: what an algorithm gave to ``local.fold``.
        like: a tree of the form of (carry, *consts).
        model: whose gradient it asks for.
        work: the local work of the round.
        block: the clients, as the step's ``local``.
    """

    def __init__(self, step: Callable[..., Any], like: Any, model: Model, work: LocalWork, block: Stack) -> None:
        self._step, self._like, self._model, self._block = step, like, model, block
        self._met: Programs = {}  # by the form of the batch
        steps = PROGRAMS.setdefault(model, {})
        if len(steps) > MOST_STEPS:
            steps.clear()
        try:
            self._programs: Programs | None = steps.setdefault((fingerprint(step, block), work), {})
        except Unreplayable:
            self._programs = None

    def __call__(self, batch: Batch, state: list[Tensor], consts: list[Tensor], own: list[bool]) -> list[Tensor]:
        """The new carry of all clients.

        Args:
            batch: of every client.
            state: the carry's tensors ``[c, ...]``; may be written into.
            consts: tensors of the step's further arguments.
            own: which of those have a row for each client.
        """
        samples = [t for t in batch if t is not None]
        if self._programs is not None:
            form = len(samples), len(batch.x)              # within one fold, all else follows from it
            if form not in self._met:
                key = (*form, *own, *((t.shape, t.stride(), t.dtype) for t in (*state, *consts)))
                if key not in self._programs:
                    self._programs[key] = self._record(samples, state, consts, own)
                self._met[form] = self._programs[key]
            if (program := self._met[form]) is not None:
                return program(self._block, [*samples, *state, *consts])
        out = self._vmapped(samples, state, consts, own)
        return [t.clone(memory_format=torch.contiguous_format) for t in out]  # a later step may be a replayed one

    def _vmapped(
        self, samples: Sequence[Tensor], state: Sequence[Tensor], consts: Sequence[Tensor], own: list[bool]
    ) -> tuple[Tensor, ...]:
        def one(batch: Batch, *flat: Tensor) -> tuple[Tensor, ...]:
            carry, *rest = build(self._like, iter(flat))
            return tuple(leaves(self._step(carry, batch, *rest)))

        dims = (tuple(0 for _ in samples), *(0 for _ in state), *(0 if o else None for o in own))
        out: tuple[Tensor, ...] = torch.vmap(lambda batch, *flat: one(Batch(*batch), *flat), in_dims=dims)(
            tuple(samples), *state, *consts
        )
        return out

    def _record(
        self, samples: list[Tensor], state: list[Tensor], consts: list[Tensor], own: list[bool]
    ) -> Program | None:
        samples, consts = [t.detach() for t in samples], [t.detach() for t in consts]  # one object for each argument
        state = [t.clone() for t in state]
        self._block.tape = tape = Tape(samples, state, consts)
        try:
            with tape:
                out = self._vmapped(samples, state, consts, own)
            return Program(tape.recording(out), len(self._model.sizes))
        except Unreplayable:
            return None
        finally:
            self._block.tape = None
