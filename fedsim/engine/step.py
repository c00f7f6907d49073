"""One local step of a block of clients: recorded on first use, replayed afterwards.

Recordings are cached by everything that determines the step: its code, the numbers it captures, the local work, and the
form of its arguments. Steps that cannot be fingerprinted or recorded run under ``torch.vmap`` as written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedsim.engine.descent import Descent
from fedsim.engine.fingerprint import fingerprint
from fedsim.engine.linear_step import LinearStep, linear_step
from fedsim.engine.local_work import LocalWork
from fedsim.engine.model import Model
from fedsim.engine.reads import Reads
from fedsim.engine.refusals import refuse_other_form
from fedsim.engine.replay import Gradients, Program
from fedsim.engine.tape import Recording, Tape, Unreplayable
from fedsim.tree import build, flat, leaves, mapped, rebuilt, shaped
from fedsim.types import Batch
from fedsim.values import Packed

Programs = dict[Hashable, Program | None]
"""Recordings of one step by the form of its arguments; None if it cannot be recorded."""

PROGRAMS: WeakKeyDictionary[Model, dict[Hashable, Programs | None]] = WeakKeyDictionary()
"""Recordings for every live model; None for steps that no recording repeats."""

FORMS: WeakKeyDictionary[Model, dict[Hashable, LinearStep | None]] = WeakKeyDictionary()
"""Steps as linear combinations; None for those of another form."""

MOST_STEPS = 64
"""Steps cached per model; only a step that captures a number of its round leads to more."""


class Stack(Gradients, Protocol):
    """The block of clients that runs a step."""

    tape: Tape | None

    @property
    def descend(self) -> Descent:
        """The local steps of its clients."""


class LocalStep:
    """``step(carry, batch, *consts)``, written for one client, as a function of stacked tensors.

    Args:
        step: the function passed to ``local.fold``.
        like: tree with the structure of ((carry, ``Descent.carry``), *consts).
        model: model whose gradient the step evaluates.
        work: local work of the round.
        block: the clients; the ``local`` of the step.
    """

    def __init__(self, step: Callable[..., Any], like: Any, model: Model, work: LocalWork, block: Stack) -> None:
        self.step, self._like, self.model, self._block = step, like, model, block
        self._scheduled = work.step_schedule is not None   # the last argument is then the factor of the step size
        self._met: Programs = {}  # by the form of the batch
        self._reads = Reads()
        self._steps = PROGRAMS.setdefault(model, {})
        if len(self._steps) > MOST_STEPS:
            self._steps.clear()
        try:
            self._form: Hashable = fingerprint((step, work.optimizer.step, _outline(like)), block), work
        except Unreplayable:
            self._form = None

    def linear(self, batch: Batch, state: list[Tensor], consts: list[Tensor], own: list[bool]) -> LinearStep | None:
        """The step as linear combinations, for arguments as in a call; None if it is not, or cannot be recorded."""
        if self._programs(batch, state, consts, own) is None:
            return None
        shapes = (tuple(t.shape[1:]) if o else tuple(t.shape) for t, o in zip(consts, own, strict=True))
        forms, key = FORMS.setdefault(self.model, {}), (self._form, *own, *shapes, *(t.shape[1:] for t in state))
        if key not in forms:
            if len(forms) > MOST_STEPS:
                forms.clear()
            recording = self._recording(batch, state, consts, own)
            forms[key] = None if recording is None else linear_step(recording, len(flat(batch)), own)
        return forms[key]

    def __call__(self, batch: Batch, state: list[Tensor], consts: list[Tensor], own: list[bool]) -> list[Tensor]:
        """Run the step, and return the new carry of all clients.

        Args:
            batch: stacked minibatches of the clients.
            state: tensors of the carry and of the slots, ``[c, ...]``; may be overwritten.
            consts: tensors of the remaining arguments.
            own: which of ``consts`` have a row per client.
        """
        samples = flat(batch)
        met = len(samples), len(samples[0])                # within one fold, all else follows from it
        if met not in self._met:
            key = (*met, *own, *((t.shape, t.stride(), t.dtype) for t in (*state, *consts)))
            programs = self._programs(batch, state, consts, own)
            if programs is not None and key not in programs:
                programs[key] = self._record(batch, state, consts, own)
            self._met[met] = None if programs is None else programs[key]
        if (program := self._met[met]) is not None:
            return program(self._block, [*samples, *state, *consts])
        out = self._vmapped(batch, state, consts, own)
        return [t.clone(memory_format=torch.contiguous_format) for t in out]  # a replayed step may overwrite it

    def _programs(
        self, batch: Batch, state: list[Tensor], consts: list[Tensor], own: list[bool]
    ) -> Programs | None:
        """Recordings of this step; None if it cannot be recorded, or computes with the number of its samples or their
        weights, which change: its recordings for one sample and for two differ.
        """
        if self._form is None:
            return None
        if self._form not in self._steps:
            first = mapped(lambda t: t[:1, :1], batch)     # of one client
            first = first._replace(weight=state[0].new_ones(1, 1, dtype=self.model.dtype))
            given = [t[:1] for t in state], [t[:1] if o else t for t, o in zip(consts, own, strict=True)], own
            one = self._recording(first, *given)
            two = self._recording(mapped(lambda t: torch.cat([t, t], 1), first), *given)
            self._steps[self._form] = {} if one is not None and two is not None and one.repeats(two) else None
        return self._steps[self._form]

    def _vmapped(
        self, batch: Batch, state: Sequence[Tensor], consts: Sequence[Tensor], own: list[bool]
    ) -> tuple[Tensor, ...]:
        samples = tuple(flat(batch))

        def one(samples: tuple[Tensor, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
            (carry, self._block.descend.carry), *rest = build(self._like, iter(tensors))
            self._block.descend.begin()
            self._block.descend.factor = rest.pop() if self._scheduled else None
            self._reads.samples = samples
            new = self.step(carry, shaped(batch, iter(samples)), *rest)
            self._reads.samples = ()
            refuse_other_form(self.step, carry, new)
            return tuple(leaves((new, self._block.descend.carry)))

        dims = (tuple(0 for _ in samples), *(0 for _ in state), *(0 if o else None for o in own))
        out: tuple[Tensor, ...] = torch.vmap(one, in_dims=dims)(samples, *state, *consts)
        return out

    def _record(
        self, batch: Batch, state: list[Tensor], consts: list[Tensor], own: list[bool]
    ) -> Program | None:
        recording = self._recording(batch, state, consts, own)
        return None if recording is None else Program(recording, len(self.model.sizes))

    def _recording(
        self, batch: Batch, state: list[Tensor], consts: list[Tensor], own: list[bool]
    ) -> Recording | None:
        batch, consts = mapped(Tensor.detach, batch), [t.detach() for t in consts]  # one object for each argument
        state = [t.clone() for t in state]
        self._block.tape = tape = Tape(flat(batch), state, consts)
        try:
            with tape, self._reads:
                out = self._vmapped(batch, state, consts, own)
            return tape.recording(out)
        except Unreplayable:
            return None
        finally:
            self._block.tape = None


def _outline(tree: Any) -> Any:
    """A tree of arguments without its tensors: the step may go by their order and names."""
    if isinstance(tree, Packed):
        return tree.by, tree.d
    return rebuilt(tree, [*map(_outline, tree)]) if isinstance(tree, tuple) else None
