"""Random numbers that a module draws in training, as a function of ``Batch.key``: dropout in all its forms in PyTorch.

``Seeded`` sits below autograd and ``torch.vmap``, where every form of dropout is one operation that fills a tensor
``[c, ...]`` (``[...]`` for one client) with coins. Coin j of the k-th such operation of a forward pass is a function of
(key, k, j) alone: padding rows, which come last, do not change the coins of others, nor does the block a client is in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.errors import ModelError
from fedsim.seeds import split

aten = torch.ops.aten

SIDES = 2**16
"""Coins have 16 bits, four coins to a word: a probability is rounded to a multiple of 1 / SIDES."""


class UnbatchedDrawError(Exception):
    """An operation draws for single clients of a block, as ``torch.vmap`` runs it client by client."""


def coins(keys: Tensor, call: int, shape: torch.Size, keep: float) -> Tensor:
    """Bool ``[*keys.shape, *shape]``, True with probability ``keep``, for keys int64 ``[]`` or ``[c]``."""
    n, below = shape.numel(), round(keep * SIDES) - SIDES // 2
    count = -(-n // 4)
    if keys.device.type == "cpu":                          # NumPy takes a third of PyTorch's time for integers
        stream = split(keys.reshape(-1).numpy(), np.array([call]))
        drawn = torch.from_numpy(split(stream[:, None], _numbers(count)).view(np.int16)[:, :n] < below)
    else:
        streams = split(keys, torch.full((), call, dtype=torch.int64, device=keys.device)).unsqueeze(-1)
        drawn = split(streams, torch.arange(count, device=keys.device)).view(torch.int16)[..., :n] < below
    return drawn.view(*keys.shape, *shape)


@lru_cache(maxsize=32)
def _numbers(n: int) -> np.ndarray:
    return np.arange(n)


@lru_cache(maxsize=1024)
def _may_draw(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation, such as fused attention, has a probability of dropout, and it is 0."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(given == 0)
    return False


class Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuse operations that draw random numbers.

    Raises:
        ModelError: with the name of the operation.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                                       # as in `Tape`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _may_draw(func) and not _without_dropout(func, args, kwargs or {}):
            return self.draw(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def draw(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Result of an operation that draws."""
        raise ModelError(
            f"module or loss draws random numbers in training by {func.overloadpacket}, which no seed of a run"
            " controls; dropout of any kind is seeded (without activation checkpointing), everything else that draws is"
            " to be left out"
        )


class Seeded(Undrawn):
    """Draw the coins of one forward pass from ``keys [c]``, or from ``keys []`` for a single client.

    Attributes:
        calls: number of operations that drew.
        by_layers: those of them within ``layers``.
    """

    def __init__(self, keys: Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keys, self.calls, self.by_layers = keys, 0, 0

    def draw(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Result of an operation that draws: coins, or a refusal."""
        if func is aten.bernoulli_.float:
            target, keep = args[0], args[1] if len(args) > 1 else 0.5      # a default is left out
            return target.copy_(self.coins(target.shape, keep))
        if func is aten.bernoulli.p:
            return self.coins(args[0].shape, args[1]).to(args[0].dtype)
        if func is aten.native_dropout.default:            # on a GPU: the mask is for its backward pass
            x, p = args[0], args[1]
            mask = self.coins(x.shape, 1 - p)
            return x * mask * (1 / (1 - p)), mask
        return super().draw(func, *args, **kwargs)

    def coins(self, shape: torch.Size, keep: float) -> Tensor:
        """Bool tensor of a shape ``[c, ...]``, or ``[...]`` for a single client, True with probability ``keep``."""
        if self._keys is None:
            raise ModelError(
                "the module draws random numbers (dropout), and this batch has no key for them; make it of the step's"
                " batch, by batch.part(rows) or batch._replace(x=x, y=y)"
            )
        block = self._keys.dim()
        if shape[:block] != self._keys.shape:
            raise UnbatchedDrawError
        self.calls += 1
        return coins(self._keys, self.calls - 1, shape[block:], keep)

    @contextlib.contextmanager
    def layers(self, dropouts: Sequence[nn.Dropout]) -> Iterator[None]:
        """Have some layers draw from here in this context, whether operations are looked at or not: which takes Python
        for each of them. Results have the bits that they have otherwise, on a CPU.
        """
        for layer in dropouts:
            vars(layer)["forward"] = partial(self._dropped, layer)
        try:
            yield
        finally:
            for layer in dropouts:
                del vars(layer)["forward"]

    def _dropped(self, layer: nn.Dropout, x: Tensor) -> Tensor:
        keep = 1 - layer.p
        if not layer.training or not 0 < keep < 1 or not x.numel():
            return type(layer).forward(layer, x)
        self.by_layers += 1
        with torch.no_grad():
            noise = torch.empty_like(x).copy_(self.coins(x.shape, keep)).div_(keep)
        return x * noise


def dropouts(module: nn.Module) -> list[nn.Dropout]:
    """The layers of a module that ``Seeded.layers`` takes."""
    return [m for m in module.modules() if type(m) is nn.Dropout and not m.inplace and "forward" not in vars(m)]
