"""Out of ``torch.vmap``: operations that need concrete values, on a whole stack of clients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from fedsim.errors import ConfigError, DivergenceError


class _Unbatched(torch.autograd.Function):
    """``plain(*tensors)``; below ``torch.vmap``, the batching rule ``stacked`` in its place."""

    @staticmethod
    def forward(
        stacked: Callable[..., tuple[Tensor, ...]], plain: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return plain(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, stacked: Callable[..., tuple[Tensor, ...]], plain: Any, *tensors: Tensor) -> Any:
        axes = in_dims[2:]
        # a tensor that lies right stays itself: a tape knows it by its identity
        moved = [t.movedim(axis, 0) if axis else t for t, axis in zip(tensors, axes, strict=True)]
        out = stacked(info.batch_size, [axis is not None for axis in axes], moved)
        return out, (0,) * len(out)


def unbatched(
    stacked: Callable[..., tuple[Tensor, ...]], plain: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """Below ``torch.vmap``, ``stacked(c, own, tensors)`` on the tensors of all ``c`` clients; else ``plain(*tensors)``.

    ``own`` marks the tensors with one row for each client, ``[c, ...]``; the others are the same for all. The results
    have one row for each client.
    """
    out: tuple[Tensor, ...] = _Unbatched.apply(stacked, plain, *tensors)  # type: ignore[no-untyped-call]
    return out


def on_stacks(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """``run(*tensors)``, where ``run`` works on any number of leading axes and gives new tensors with the same."""

    def stacked(c: int, own: list[bool], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return on_stacks(run, *(t if o else t.expand(c, *t.shape) for t, o in zip(tensors, own, strict=True)))

    return unbatched(stacked, run, *tensors)


def finite(x: Tensor, by: object, verb: str = "got") -> Tensor:
    """``x [..., d]`` if it is finite. Below ``torch.vmap`` numbers cannot be checked: there the message has to hold NaN
    or infinity as well, so that the engine can name the client.

    Raises:
        ConfigError: it is neither float32 nor float64, of which alone messages are made.
        DivergenceError: it is not finite.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"{type(by).__name__} got a vector of {x.dtype}; expected float32 or float64. Convert it first (.float())"
        )
    if not is_batchedtensor(x) and not torch.isfinite(x.sum()) and not (good := torch.isfinite(x)).all():
        raise DivergenceError(
            f"{type(by).__name__} {verb} {int((~good).sum())} numbers that are NaN or infinite, of {x.numel()};"
            " expected finite ones. Lower the learning rate, set local.clip_norm, or look at the data"
        )
    return x
