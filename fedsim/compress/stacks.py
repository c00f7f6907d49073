"""Out of ``torch.vmap``: operations that must see numbers, on a whole stack of clients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from fedsim.errors import DivergenceError


class _OnStacks(torch.autograd.Function):
    """``run`` on plain tensors; below ``torch.vmap``, on tensors with the clients' axis in front."""

    @staticmethod
    def forward(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Any:
        stacks = [
            t.expand(info.batch_size, *t.shape) if axis is None else t.movedim(axis, 0)
            for t, axis in zip(tensors, in_dims[1:], strict=True)
        ]
        out = on_stacks(run, *stacks)
        return out, (0,) * len(out)


def on_stacks(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``run(*tensors)``, where ``run`` works on any number of leading axes and gives new tensors with the same."""
    out: tuple[Tensor, ...] = _OnStacks.apply(run, *tensors)  # type: ignore[no-untyped-call]
    return out


def finite(x: Tensor, by: object) -> Tensor:
    """``x [..., d]`` if it is finite. Below ``torch.vmap`` it is not looked at: there the message has to show what is
    not, so that the engine can name the client.

    Raises:
        DivergenceError: it is not.
    """
    if not is_batchedtensor(x) and not torch.isfinite(x.sum()) and not (good := torch.isfinite(x)).all():
        raise DivergenceError(
            f"{type(by).__name__} got {int((~good).sum())} numbers that are NaN or infinite, of {x.numel()}; expected"
            " finite ones. Lower the learning rate, set local.clip_norm, or look at the data"
        )
    return x
