"""Local optimisers as one operation of a recording: PyTorch's fused kernels, in place, instead of several passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from weakref import proxy

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from fedsim.compress.stacks import unbatched
from fedsim.engine.descent import Descent
from fedsim.engine.local_work import LocalWork
from fedsim.engine.optimizers import Adagrad, Adam, AdamW, HeavyBall, Nesterov
from fedsim.engine.sharing import Sharing
from fedsim.engine.tape import Tape
from fedsim.types import Optimizer
from fedsim.values import Vector

Rows: TypeAlias = list[Tensor]


def _adam(by: Any, eta: float, y: Rows, g: Rows, m: Rows, v: Rows, t: Rows) -> None:
    torch._fused_adamw_(
        y, g, m, v, [], t, lr=eta, beta1=by.beta1, beta2=by.beta2, weight_decay=getattr(by, "weight_decay", 0.0),
        eps=by.eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def _momentum(by: Any, eta: float, y: Rows, g: Rows, m: Rows) -> None:
    torch._fused_sgd_(
        y, g, m, weight_decay=0.0, momentum=by.momentum, lr=eta, dampening=0.0, nesterov=isinstance(by, Nesterov),
        maximize=False, is_first_step=False,
    )  # fmt: skip


def _adagrad(by: Any, eta: float, y: Rows, g: Rows, v: Rows) -> None:
    steps = [*torch.ones(len(y)).unbind()]                 # which count where the step size decays; here it does not
    torch._fused_adagrad_(y, g, v, steps, lr=eta, lr_decay=0.0, weight_decay=0.0, eps=by.eps, maximize=False)


KERNELS: dict[type, Callable[..., None]] = {
    Adam: _adam, AdamW: _adam, HeavyBall: _momentum, Nesterov: _momentum, Adagrad: _adagrad,
}  # fmt: skip
"""The step of each optimiser, in place on tensors of points, gradients and slots; numbers, 0-dim, count it for each."""


@dataclass(frozen=True)
class FusedStep:
    """The step of a stack of clients, as the optimiser's ``step`` makes it for one.

    Attributes:
        by: the optimiser.
        vectors: number of its slots that are vectors, which come first.
        eta: step size; None if it is the last argument of a call, ``[]`` or ``[c, 1]``.
    """

    by: Optimizer
    vectors: int
    eta: float | None

    def __call__(self, y: Tensor, g: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Step from ``y [c, ...]`` along ``g``, in place on ``y`` and on the slots that follow."""
        slots, numbers = others[: self.vectors], others[self.vectors :]
        self.step([[t] for t in (y, g, *slots)], numbers)
        return y, *slots

    def step(self, vectors: Sequence[Rows], numbers: Sequence[Tensor]) -> None:
        """Step in place.

        Args:
            vectors: point, gradient and slots, each by parameter, ``[c, ...]``.
            numbers: what follows the slots in a call, ``[]``, ``[c]`` or ``[c, 1]``.
        """
        counts = [*numbers] if self.eta is not None else [*numbers[:-1]]
        sizes = [self.eta] if self.eta is not None else numbers[-1].flatten().tolist()
        kernel, parts = KERNELS[type(self.by)], len(vectors[0])
        alike = len({*sizes}) == 1
        if alike and all(_one(t) for t in counts) and all(t.is_contiguous() for of in vectors for t in of):
            firsts = [[t.flatten()[0].float()] * parts for t in counts]
            kernel(self.by, sizes[0], *vectors, *firsts)   # of all clients at once
            return
        numbered = [[t.flatten().float()] * parts for t in counts]
        rows = [[[*t.unbind()] for t in of] for of in (*vectors, *numbered)]
        for some in [slice(None)] if alike else [slice(i, i + 1) for i in range(len(sizes))]:
            kernel(self.by, sizes[some][0], *([t for ts in of for t in ts[some]] for of in rows))


def _one(numbers: Tensor) -> bool:
    """Return whether all numbers are the same."""
    return len({*numbers.flatten().tolist()}) == 1


class Recorder(Protocol):
    """Block of clients whose steps may be under recording."""

    tape: Tape | None


class StackDescent(Descent):
    """The local steps of a block of clients; on a CPU, recorded ones are one operation where ``KERNELS`` has it."""

    def __init__(
        self, work: LocalWork, block: Recorder, learned: Tensor | None, sharing: Sharing | None = None
    ) -> None:
        super().__init__(work, learned, sharing)
        self._block: Recorder = proxy(block)               # which has these steps: a circle would keep its tensors

    def _step(self, y: Vector, g: Vector, eta: Tensor | float) -> Vector:
        tape, by = self._block.tape, self._work.optimizer
        stacked = all(is_batchedtensor(t) for t in (y, g, *self.slots))
        if tape is None or type(by) not in KERNELS or y.device.type != "cpu" or not stacked:
            return super()._step(y, g, eta)
        vectors = [slot for slot in self.slots if slot.dim()]
        numbers = [slot + 1.0 for slot in self.slots if not slot.dim()]
        sizes = [eta.unsqueeze(0) if is_batchedtensor(eta) else eta] if isinstance(eta, Tensor) else []
        fused = FusedStep(by, len(vectors), None if sizes else float(eta))

        def record(c: int, own: list[bool], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            made: tuple[Tensor, ...] = tape.call(fused, tensors, (0, *range(2, 2 + len(vectors))))
            return made

        def alone(*tensors: Tensor) -> tuple[Tensor, ...]:
            raise RuntimeError("a recorded step has clients")

        given = y, g, *vectors, *(number.unsqueeze(0) for number in numbers), *sizes
        y, *vectors = unbatched(record, alone, *given)
        self.slots = *vectors, *numbers
        return y
