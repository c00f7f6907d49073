"""Out of ``torch.vmap``: operations that must see numbers, on a whole stack of clients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


class _Finite(torch.autograd.Function):
    @staticmethod
    def forward(who: str, x: Tensor) -> Tensor:
        if not torch.isfinite(x.sum()) and not (finite := torch.isfinite(x)).all():
            raise DivergenceError(
                f"{who} got {int((~finite).sum())} numbers that are NaN or infinite, of {x.numel()}; expected finite"
                " ones. Lower the learning rate, set local.clip_norm, or look at the data"
            )
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, who: str, x: Tensor) -> Any:
        return on_stacks(_spoiled, x.movedim(in_dims[1], 0))[0], 0


def _spoiled(x: Tensor) -> tuple[Tensor]:
    """Vectors ``[..., d]``, those that are not finite as NaN throughout."""
    bad = ~torch.isfinite(x.sum(-1, keepdim=True))
    return (x.masked_fill(bad & ~torch.isfinite(x).all(-1, keepdim=True), torch.nan) if bad.any() else x.view_as(x),)


def finite(x: Tensor, by: object) -> Tensor:
    """``x [..., d]`` if it is finite. In a stack of clients a bad vector becomes NaN throughout, so that its message
    shows it and the engine can name the client.

    Raises:
        DivergenceError: it is not, outside a stack of clients.
    """
    out: Tensor = _Finite.apply(type(by).__name__, x)  # type: ignore[no-untyped-call]
    return out
