"""Adam's local step as one operation of a recording: PyTorch's fused kernel, in place, instead of eight passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from fedsim.compress.stacks import unbatched
from fedsim.engine.descent import Descent
from fedsim.engine.local_work import LocalWork
from fedsim.engine.optimizers import Adam, AdamW
from fedsim.engine.tape import Tape
from fedsim.values import Vector


@dataclass(frozen=True)
class FusedAdam:
    """Adam's step of a stack of clients at once, as ``Adam.step`` makes it for one.

    Attributes:
        by: its settings.
        weight_decay: decay of the points; 0 for Adam.
        eta: step size, unless a call is given one.
    """

    by: Adam
    weight_decay: float
    eta: float

    def __call__(
        self, y: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor, eta: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step from ``y [c, ...]`` along ``g``, with means ``m`` and ``v``, in place; ``t [c, 1]`` counts this step."""
        size = float(self.eta if eta is None else eta)
        torch._fused_adamw_(
            y.unbind(), g.unbind(), m.unbind(), v.unbind(), [], t.float().unbind(), lr=size, beta1=self.by.beta1,
            beta2=self.by.beta2, weight_decay=self.weight_decay, eps=self.by.eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        return y, m, v


class Recorder(Protocol):
    """Block of clients whose steps may be under recording."""

    tape: Tape | None


class StackDescent(Descent):
    """The local steps of a block of clients; a recorded step of Adam or AdamW on a CPU is one operation."""

    def __init__(self, work: LocalWork, block: Recorder, learned: Tensor | None) -> None:
        super().__init__(work, learned)
        self._block = block

    def _step(self, y: Vector, g: Vector, eta: Tensor | float) -> Vector:
        tape, by = self._block.tape, self._work.optimizer
        given = (y, g, *self.slots)
        if (
            tape is None
            or type(by) not in (Adam, AdamW)
            or y.device.type != "cpu"
            or (isinstance(eta, Tensor) and is_batchedtensor(eta))
            or not all(is_batchedtensor(t) for t in given)
        ):
            return super()._step(y, g, eta)
        assert isinstance(by, Adam)
        sizes = [eta] if isinstance(eta, Tensor) else []
        fused = FusedAdam(by, getattr(by, "weight_decay", 0.0), 0.0 if sizes else float(eta))

        def record(c: int, own: list[bool], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tape.call(fused, tensors, (0, 2, 3))

        m, v, t = self.slots
        t = t + 1.0
        y, m, v = unbatched(record, lambda *_: (y, m, v), y, g, m, v, t.unsqueeze(0), *sizes)
        self.slots = m, v, t
        return y
