"""Recording of a local step: the operations on stacked tensors into which ``torch.vmap`` translates it.

A step is ordinary tensor algebra around calls of ``local.grad``. It runs once under a ``Tape``, with zero gradients;
``fedsim.engine.replay`` then repeats the recorded operations. A step that cannot be repeated in this way is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.types import Batch

MOST_OPERATIONS = 500
"""Maximum length of a recording; longer steps are more than algebra around a gradient."""

class Unreplayable(Exception):
    """The step does something that a recording cannot repeat; it must run as written."""


class Slot(int):
    """Number of a tensor in a recording."""


@dataclass
class Op:
    """One operation, or a call of the model's gradient if ``fn`` is None. The result may overwrite slot ``over``.

    The results of a call of ``Tape.call`` overwrite the arguments at the places ``inplace``, in this order.
    """

    fn: Callable[..., Any] | None
    args: list[Any]  # tensors as slots, lists of tensors as lists of slots
    kwargs: dict[str, Any]
    out: list[Slot]
    over: Slot | None = None
    inplace: tuple[int, ...] = ()

    def reads(self) -> list[Slot]:
        """Slots of the arguments."""
        return [a for arg in self.args for a in (arg if isinstance(arg, list) else [arg]) if isinstance(a, Slot)]


@dataclass
class Recording:
    """A step as a list of operations.

    Attributes:
        ops: in order; each slot is written once.
        tensors: value of every slot while recording, used for its shape, type and storage.
        inputs: number of leading slots that are inputs: samples, carry, constants.
        carry: slots of the carry, which the step replaces.
        results: slots of the new carry.
    """

    ops: list[Op]
    tensors: list[Tensor]
    inputs: int
    carry: range
    results: list[Slot]

    def alike(self, a: Slot, b: Slot) -> bool:
        """Return whether two slots have the same shape and type."""
        return (self.tensors[a].shape, self.tensors[a].dtype) == (self.tensors[b].shape, self.tensors[b].dtype)

    def repeats(self, other: Recording) -> bool:
        """Return whether the operations of another recording, and the numbers in them, are the same."""
        if self.ops != other.ops or self.results != other.results:
            return False
        constants = {*range(self.inputs, len(self.tensors))} - self.made()
        return all(torch.equal(self.tensors[slot], other.tensors[slot]) for slot in constants)

    def storage(self, slot: int) -> int:
        """Address of the storage of a slot's tensor."""
        return address(self.tensors[slot])

    def made(self) -> set[Slot]:
        """Slots that are written by an operation."""
        return {slot for op in self.ops for slot in op.out}


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recorder of all operations on tensors, in order."""

    def __init__(self, samples: Sequence[Tensor], carry: Sequence[Tensor], consts: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ops: list[Op] = []
        self._tensors: list[Tensor] = []  # by slot; kept alive, so that no two have the same id or address
        self._slots: dict[int, Slot] = {}
        self._addresses: set[int] = set()
        self._paused = False
        self._samples, self._carry = len(samples), range(len(samples), len(samples) + len(carry))
        for t in (*samples, *carry, *consts):
            self._new(t)
        self._inputs = len(self._tensors)

    def recording(self, results: Sequence[Tensor]) -> Recording:
        """Recording of a step that returned ``results``.

        Raises:
            Unreplayable: the step computes with the samples, whose number changes from batch to batch.
        """
        if any(op.fn is not None and slot < self._samples for op in self._ops for slot in op.reads()):
            raise Unreplayable("the step computes with the samples themselves")
        return Recording(self._ops, self._tensors, self._inputs, self._carry, [self._slot(t) for t in results])

    def gradient(self, x: Tensor, batch: Sequence[Tensor], like: Batch) -> Tensor:
        """Record a call of the model's gradient on the tensors of a batch of the form ``like``, and return zeros."""
        self._paused = True
        g = torch.zeros_like(x, memory_format=torch.contiguous_format)
        self._paused = False
        self._ops.append(Op(None, [self._slot(t) for t in (x, *batch)], {"like": like}, [self._new(g)]))
        return g

    def call(
        self, fn: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], inplace: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """Record a call of ``fn``, which returns its arguments at the places ``inplace`` overwritten coordinate by
        coordinate; return zeros.
        """
        self._paused = True
        out = tuple(torch.zeros_like(args[k], memory_format=torch.contiguous_format) for k in inplace)
        self._paused = False
        self._ops.append(Op(fn, [self._slot(t) for t in args], {}, [self._new(t) for t in out], inplace=inplace))
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, unused here, in 1.5 s

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and not self._paused:   # before it writes into the step's own arguments
            raise Unreplayable(f"{func} writes into a tensor")
        out = func(*args, **kwargs)
        if self._paused:
            return out
        results = list(out) if isinstance(out, (tuple, list)) else [out]
        if not all(isinstance(t, Tensor) for t in results):
            raise Unreplayable(f"{func} returns something else than tensors")
        if any(isinstance(v, Tensor) for v in kwargs.values()) or len(self._ops) == MOST_OPERATIONS:
            raise Unreplayable(f"{func} has a tensor as a keyword, or is one operation too many")
        self._ops.append(Op(func, [self._noted(a) for a in args], kwargs, [self._new(t) for t in results]))
        return out

    def _noted(self, arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return [self._noted(a) for a in arg]
        return self._slot(arg) if isinstance(arg, Tensor) else arg

    def _slot(self, t: Tensor) -> Slot:
        """Slot of a tensor; one that is neither an input nor computed is a constant."""
        if id(t) in self._slots:
            return self._slots[id(t)]
        if address(t) in self._addresses:
            raise Unreplayable("a view that no recorded operation made")
        return self._new(t)

    def _new(self, t: Tensor) -> Slot:
        slot = self._slots[id(t)] = Slot(len(self._tensors))
        self._tensors.append(t)
        self._addresses.add(address(t))
        return slot


def address(t: Tensor) -> int:
    """Address of the storage of a tensor."""
    return t.untyped_storage().data_ptr()
