"""Random numbers that a module draws in training, as a function of ``Batch.key``: dropout in all its forms in PyTorch.

``Seeded`` sits below autograd and ``torch.vmap``, where every form of dropout is one operation that fills a tensor
``[c, ...]`` (``[...]`` for one client) with coins. Coin j of the k-th such operation of a forward pass is a function of
(key, k, j) alone: padding rows, which come last, do not change the coins of others, nor does the block a client is in.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
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
    n = shape.numel()
    stream = split(keys, torch.full((), call, dtype=torch.int64, device=keys.device)).unsqueeze(-1)
    count = -(-n // 4)
    numbers = _numbers(count) if keys.device.type == "cpu" else torch.arange(count, device=keys.device)
    words = split(stream, numbers)
    return (words.view(torch.int16)[..., :n] < round(keep * SIDES) - SIDES // 2).view(*keys.shape, *shape)


@lru_cache(maxsize=32)
def _numbers(n: int) -> Tensor:
    return torch.arange(n)                                 # on a GPU a graph may hold its address: not to be evicted


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
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs or {}):
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
    """

    def __init__(self, keys: Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keys, self.calls = keys, 0

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
