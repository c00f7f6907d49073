"""Where the products of low rank of LoRA stand in a model's vector, and the steps of its clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import Clients, Local, Vector
from fedsim.errors import ConfigError


class Pair(NamedTuple):
    """A layer's A [r, k], B [d, r] and, if the model has it, R [d, k], by their first places in the vector."""

    a: int
    b: int
    residual: int | None
    r: int
    d: int
    k: int


@dataclass(frozen=True)
class Adapters:
    """All products of low rank in a model.

    Args:
        pairs: of each layer.
        length: length of the model's vector.
        layers: their names.
    """

    pairs: tuple[Pair, ...]
    length: int
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, clients: Clients, method: str, residual: bool | None = None) -> Adapters:
        """Those of the federation's model, for a method that needs R, has no use for it, or does not care (None).

        Raises:
            ConfigError: the model has none, or not what the method needs.
        """
        first, start = {}, 0
        for name, shape in zip(clients.names, clients.shapes, strict=True):
            first[name] = start, shape
            start += shape.numel()
        pairs, layers = [], []
        for name, (a, shape) in first.items():
            layer = name.removesuffix("lora_A")
            if layer == name or layer + "lora_B" not in first:
                continue
            b, (d, _) = first[layer + "lora_B"]
            at, _ = first.get(layer + "lora_R", (None, None))
            pairs.append(Pair(a, b, at, shape[0], d, shape[1]))
            layers.append(layer.rstrip("."))
        if not pairs:
            raise ConfigError(
                f"{method} is of models with products of low rank whose A and B both train and travel; expected"
                " model fedsim.models.LoRA with train both, and all layers shared"
            )
        if residual is not None and any((pair.residual is None) is residual for pair in pairs):
            use = "adds to the frozen weights" if residual else "does not change the frozen weights"
            raise ConfigError(f"{method} {use}; expected model.residual {str(residual).lower()}")
        return cls(tuple(pairs), start, tuple(layers))

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(pair.r for pair in self.pairs)

    def ranks(self, given: tuple[int, ...], n: int, method: str) -> np.ndarray:
        """Rank of each of ``n`` clients, which take the given ones in turn; the model's by default.

        Raises:
            ConfigError: one of them is not from 1 to the model's.
        """
        wrong = [r for r in given if not 1 <= r <= self.rank]
        if wrong:
            raise ConfigError(f"{method}.ranks has {wrong[0]}; expected ranks from 1 to the model's, {self.rank}")
        return np.resize(np.array(given or (self.rank,)), n)

    def places(self, kinds: str, rank: int, like: Tensor) -> Tensor:
        """Places in the vector, layer by layer, of the first ``rank`` rows of A and columns of B, as far as ``kinds``
        names "A" and "B"; then, where it names "+", of all parameters besides A, B and R, such as those of a new head.
        """
        at = torch.arange(self.length, device=like.device)
        others, found = torch.ones_like(at, dtype=torch.bool), [at[:0]]
        for a, b, residual, r, d, k in self.pairs:
            if "A" in kinds:
                found.append(at[a : a + r * k].view(r, k)[:rank].reshape(-1))
            if "B" in kinds:
                found.append(at[b : b + d * r].view(d, r)[:, :rank].reshape(-1))
            for start, size in ((a, r * k), (b, d * r), *([] if residual is None else [(residual, d * k)])):
                others[start : start + size] = False
        return torch.cat([*found, at[others]] if "+" in kinds else found)

    def residuals(self, like: Tensor) -> Tensor:
        """Places of all R, layer by layer."""
        at = torch.arange(self.length, device=like.device)
        return torch.cat([at[p.residual : p.residual + p.d * p.k] for p in self.pairs if p.residual is not None])

    def factors(self, x: Tensor, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A ``[..., rank, k]`` and B ``[..., d, rank]`` of each layer, from values ``x [..., m]`` that begin with those
        at ``places("AB", rank)``.
        """
        start = 0
        for _, _, _, r, d, k in self.pairs:
            own = min(rank, r)
            middle, end = start + own * k, start + own * (k + d)
            yield x[..., start:middle].reshape(*x.shape[:-1], own, k), x[..., middle:end].reshape(*x.shape[:-1], d, own)
            start = end

    def size(self, rank: int) -> int:
        """Number of coordinates of A and B at a rank."""
        return sum(min(rank, pair.r) * (pair.d + pair.k) for pair in self.pairs)

    def products(self, x: Tensor, rank: int) -> Tensor:
        """B A of all layers, flattened and joined, ``[..., sum d k]``."""
        return torch.cat([(b @ a).flatten(-2) for a, b in self.factors(x, rank)], -1)

    def increments(self, rank: int, like: Tensor) -> tuple[Any, ...]:
        """Form of the message that adds a product of that rank to each R: its factors, or R itself if it is smaller."""
        return tuple(
            (form(like, rank, k), form(like, d, rank)) if rank * (d + k) < d * k else form(like, d, k)
            for _, _, _, _, d, k in self.pairs
        )


def form(like: Tensor, *shape: int) -> Tensor:
    """A tensor of that shape, and the type of ``like``, without values."""
    return torch.empty(shape, dtype=like.dtype, device="meta")


def groups(clients: Clients, ranks: np.ndarray) -> list[tuple[int, Clients]]:
    """The cohort by the ranks ``[n]`` of its clients, in increasing order."""
    own = ranks[clients.ids]
    return [(int(rank), clients.only(own == rank)) for rank in np.unique(own)]


def joint(parts: list[tuple[float, Vector]]) -> Vector:
    """Mean of vectors with weights that need not sum to 1."""
    total = sum(weight for weight, _ in parts)
    return torch.stack([vector * (weight / total) for weight, vector in parts]).sum(0)


def steps(local: Local, start: Vector, places: Tensor, lr: float) -> Vector:
    """The local steps of a round from ``start`` that move the coordinates at ``places`` alone."""

    def step(y: Vector, batch: Any, moves: Tensor, eta: Vector) -> Vector:
        return torch.where(moves, local.descend(y, local.grad(y, batch), eta), y)

    moves = torch.zeros_like(start, dtype=torch.bool).index_fill(0, places, True)
    return local.fold(step, start, moves, lr * local.decay)
