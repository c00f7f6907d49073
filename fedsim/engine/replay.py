"""Replay of a recorded local step: the same algebra without the overhead of ``torch.vmap``, in fewer passes.

The operations after the last gradient of a step are mostly coordinate-wise. They then run parameter by parameter, as
soon as the model has computed that parameter's gradient and while it is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsim.engine.rewrite import OVER, aten, rewrite
from fedsim.engine.tape import Op, Recording, Slot
from fedsim.types import Batch


class Gradients(Protocol):
    """Gradients of a block of clients at ``x [c, d]`` on the tensors of their batch."""

    def gradients(self, x: Tensor, *batch: Tensor, like: Batch) -> Tensor:
        """See ``Model.gradients``; ``[c, d]``, on a batch of the form ``like``."""

    def gradient_parts(self, x: Tensor, *batch: Tensor, like: Batch) -> Iterable[tuple[int, Tensor]]:
        """See ``Model.gradient_parts``."""


COLUMNWISE = {*OVER.keys(), *OVER.values()} | {
    *(aten.neg.default, aten.abs.default, aten.sign.default, aten.rsqrt.default),
    *(aten.reciprocal.default, aten.pow.Tensor_Scalar, aten.clamp.default, aten.maximum.default, aten.minimum.default),
    *(aten.where.self, aten.addcdiv.default),
}
"""Coordinate-wise operations."""

LEAST_PART = 2**15
"""Smallest mean size of a parameter, over all clients of a block, at which going by parameters is faster."""


class Program:
    """Executable step: ``program(block, [*samples, *carry, *consts])`` is the new carry; may overwrite the old one.

    Args:
        recording: recording of the step; modified in place.
        parts: number of parts of the model's gradient.
    """

    def __init__(self, recording: Recording, parts: int) -> None:
        rewrite(recording)
        self._results = recording.results
        self._ops, self._tail = _split(recording, parts)
        self._plan_tail(recording)
        inputs = {Slot(i) for i in range(recording.inputs)}
        constants = enumerate(recording.tensors[recording.inputs :], recording.inputs)
        self._constants = [None if Slot(i) in recording.made() else t for i, t in constants]
        last = {slot: n for n, op in enumerate(self._ops) for slot in (*op.out, *op.reads())}
        needed = {*self._results, *(slot for op in self._tail for slot in op.reads())}
        free = (recording.made() | inputs) - needed
        self._dead = [[slot for slot in free if last.get(slot) == n] for n in range(len(self._ops))]

    def __call__(self, block: Gradients, inputs: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        env: list[Any] = [*inputs, *self._constants]
        for op, dead in zip(self._ops, self._dead, strict=True):
            _do(op, env, block)
            for slot in dead:
                env[slot] = None
        if self._tail:
            self._run_tail(env, block)
        return [env[slot] for slot in self._results]

    def _plan_tail(self, r: Recording) -> None:
        """Find the tensors that the tail reads, and the place of each result: over one of them, or assembled."""
        made = {slot for op in self._tail for slot in op.out}
        self._homes: dict[Slot, Slot] = {}
        for op in self._tail:
            overwritten = [op.args[k] for k in op.inplace] or ([] if op.over is None else [op.over])
            for slot, old in zip(op.out, overwritten, strict=False):
                if (home := self._homes.get(old, old)) not in made:
                    self._homes[slot] = home
        read = {slot for op in self._tail[1:] for slot in op.reads()} - made
        self._whole = [slot for slot in read if r.tensors[slot].shape[-1:] not in ((), (1,))]
        self._assembled = [slot for slot in made.intersection(self._results) if slot not in self._homes]

    def _run_tail(self, env: list[Any], block: Gradients) -> None:
        first, *ops = self._tail
        assembled = [(slot, torch.empty_like(env[first.args[0]])) for slot in self._assembled]
        whole = [(slot, env[slot]) for slot in self._whole]
        for start, part in block.gradient_parts(*[env[slot] for slot in first.args], **first.kwargs):
            columns = slice(start, start + part.shape[1])
            for slot, t in whole:
                env[slot] = t[..., columns]
            env[first.out[0]] = part
            for op in ops:
                _do(op, env, block)
            for slot, t in assembled:
                t[:, columns] = env[slot]
        for slot, t in whole + assembled:
            env[slot] = t
        for slot, home in self._homes.items():
            env[slot] = env[home]


def _split(r: Recording, parts: int) -> tuple[list[Op], list[Op]]:
    """Split before the last gradient if the operations from it on can run in parts; else return all and none."""
    at = max((n for n, op in enumerate(r.ops) if op.fn is None), default=len(r.ops))
    if at == len(r.ops):
        return r.ops, []
    first, *rest = r.ops[at:]
    gradient = r.tensors[first.out[0]]
    widths = {r.tensors[slot].shape[-1:] for op in rest for slot in op.reads()}
    if (
        gradient.numel() >= LEAST_PART * parts
        and all((op.inplace or op.fn in COLUMNWISE) and r.alike(op.out[0], first.out[0]) for op in rest)
        and widths <= {gradient.shape[-1:], (1,), ()}
    ):
        return r.ops[:at], r.ops[at:]
    return r.ops, []


def _do(op: Op, env: list[Any], block: Gradients) -> None:
    args = [_fill(a, env) for a in op.args]
    if op.fn is None:
        env[op.out[0]] = block.gradients(*args, **op.kwargs)
        return
    out = op.fn(*args, **op.kwargs) if op.over is None else op.fn(*args, **op.kwargs, out=env[op.over])
    for slot, t in zip(op.out, [out] if isinstance(out, Tensor) else out, strict=True):
        env[slot] = t


def _fill(arg: Any, env: list[Any]) -> Any:
    if type(arg) is Slot:
        return env[arg]
    return [_fill(a, env) for a in arg] if type(arg) is list else arg
