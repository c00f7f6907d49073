"""Affine local steps of a stack of clients on a dense network, without a gradient of a weight in memory.

During a fold every parameter is one contiguous tensor ``[c, *shape]``, so that one batched product adds ``alpha
delta^T h`` to the weights in place. A vector ``[c, d]`` is split once before the first step and joined after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedsim.engine.affine import Affine
from fedsim.engine.linear_stack import DenseStack
from fedsim.engine.step import LocalStep
from fedsim.types import Batch

LEAST_STEPS = 3
"""Fewer do not pay for splitting and joining."""


class DenseFold:
    """The steps of one fold: ``step(batch, state)`` on parameters in the order of the network's layers.

    Args:
        dense: the network.
        form: the step.
        consts: its constants in this fold.
    """

    def __init__(self, dense: DenseStack, form: Affine, consts: list[Tensor]) -> None:
        self._dense = dense
        self._beta, self._alpha, shift = form.at(consts)
        self.shift = [] if shift is None else self.split(shift)
        self.own = [shift is not None and shift.dim() == 2] * len(self.shift)

    def split(self, xs: Tensor) -> list[Tensor]:
        """Copies of the parameters in ``xs [c, d]``: weights ``[c, rows, columns]`` and biases ``[c, rows]``."""
        xs = xs if xs.dim() == 2 else xs.unsqueeze(0)
        parts = [t for pair in self._dense.parameters(xs) for t in pair if t is not None]
        return [t.clone(memory_format=torch.contiguous_format) for t in parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Vectors ``[c, d]`` of parameters."""
        offsets = [at for layer in self._dense.layers for at in (layer.start, layer.bias_start)[: 1 + layer.bias]]
        placed = sorted(zip(offsets, parts, strict=True), key=lambda pair: pair[0])
        return torch.cat([t.flatten(1) for _, t in placed], 1)

    def __call__(self, batch: Batch, state: list[Tensor], shift: list[Tensor]) -> list[Tensor]:
        """Step all clients, in place; ``shift`` is cut to them."""
        parts = iter(state)
        pairs = [(next(parts), next(parts) if layer.bias else None) for layer in self._dense.layers]
        for i, delta, given in self._dense.backward(pairs, batch):
            w, b = pairs[i]
            w.baddbmm_(delta.mT, given, beta=self._beta, alpha=self._alpha)
            if b is not None:
                (b if self._beta == 1 else b.mul_(self._beta)).add_(delta.sum(1), alpha=self._alpha)
        if shift:
            torch._foreach_add_(state, shift)
        return state


def dense_fold(
    step: LocalStep, steps: int, some: Callable[[], Batch], state: list[Tensor], consts: list[Tensor], own: list[bool]
) -> DenseFold | None:
    """The steps of a fold on a dense network, if they are affine and there are enough of them.

    Args:
        step: the step as written.
        steps: the largest number of steps of a client.
        some: makes a batch of one sample of each client.
        state: carry of the fold.
        consts: its constants.
        own: which of them have a row per client.
    """
    model = step.model
    if model.dense is None or model.mixes or model.penalty is not None or model.device.type != "cpu":
        return None
    if steps < LEAST_STEPS or not model.dense.takes((batch := some()).x):
        return None
    form = step.affine(batch, state, consts, own)
    return None if form is None else DenseFold(model.dense, form, consts)
