"""The positions of LoRA's low-rank factors in a model's vector, and the local steps on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim import Clients, Local, Rebuilt, Vector
from fedsim.checks import whole
from fedsim.errors import ConfigError

Stacks: TypeAlias = Mapping[str, tuple[Tensor, ...]]
"""Stacked products of some rounds, by round: see ``Adapters.stacked``."""


class Pair(NamedTuple):
    """A layer's A [r, k], B [d, r] and, if the model has it, R [d, k], by their first positions in the vector."""

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
    def of(cls, where: Clients | Local, method: str, residual: bool | None = None) -> Adapters:
        """Those of the model, at the server or a client, for a method that needs R, has no use for it, or does not care
        (None).

        Raises:
            ConfigError: the model has none, or not what the method needs.
        """
        first, start = {}, 0
        for name, shape in zip(where.names, where.shapes, strict=True):
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
                " model LoRA (fedsim.models) with train both, and all layers shared"
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
        return _places(self, kinds, rank, like.device)

    def residuals(self, like: Tensor) -> Tensor:
        """Places of all R, layer by layer."""
        return _places(self, "R", 0, like.device)

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

    def stacked(self, x: Tensor, rank: int, weights: Tensor) -> Tensor:
        """The sum of the clients' products with weights ``[c]``, as stacks ``[c rank, sum k + d]``: for each layer the
        rows of A beside the columns of B. ``x [c, m]`` is as of `factors`.
        """
        parts = []
        for a, b in self.factors(x, rank):
            parts += [a.flatten(0, 1), (weights[:, None, None] * b).transpose(1, 2).flatten(0, 1)]
        return torch.cat(parts, 1)

    def split(self, stack: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A ``[m, k]`` and B ``[d, m]`` of each layer, from a stack ``[m, sum k + d]``."""
        parts = iter(torch.split(stack, [size for p in self.pairs for size in (p.k, p.d)], 1))
        return [(a.contiguous(), b.T.contiguous()) for a, b in zip(parts, parts, strict=True)]

    def grown(self, x: Vector, increments: Sequence[Any], ranks: list[int]) -> Vector:
        """``x`` after increments of each R: products, one after the other, of these ranks, or R itself."""
        x = x.clone()
        for p, news in zip(self.pairs, increments, strict=True):
            residual = x[p.residual : p.residual + p.d * p.k].view(p.d, p.k)  # type: ignore[operator]
            if isinstance(news, Tensor):
                residual.copy_(news)
            else:                                          # in the same order, and thus with the same bits, everywhere
                for a, b in zip(torch.split(news[0], ranks), torch.split(news[1], ranks, 1), strict=True):
                    residual += b.contiguous() @ a.contiguous()
        return x

    def news(self, x: Vector, stacks: Stacks, missed: int) -> tuple[tuple[Any, ...], str]:
        """Message that adds to each R the last stacks, of ``missed`` ranks in all: their factors, or R itself if it is
        smaller. And these ranks, as text.
        """
        lately: list[Tensor] = []
        for key in sorted(stacks, key=int, reverse=True):
            if sum(map(len, lately)) < missed:
                lately.insert(0, *stacks[key])
        factors = self.split(torch.cat(lately)) if lately else [()] * len(self.pairs)
        found = tuple(
            own if self.smaller(p, missed) else x[p.residual : p.residual + p.d * p.k].view(p.d, p.k)  # type: ignore[operator]
            for p, own in zip(self.pairs, factors, strict=True)
        )
        return found, ",".join(str(len(stack)) for stack in lately)

    def heard(self, x: Vector, increments: Sequence[Any], ranks: str) -> Vector:
        """``x`` after the message and the ranks of `news`."""
        return self.grown(x, increments, [int(rank) for rank in ranks.split(",") if rank])

    def kept(self, stacks: Stacks, stack: Tensor, round: int) -> Stacks:
        """The stacks with that of a round, as far as they are smaller than some R."""
        both, found, total = {**stacks, str(round): (stack,)}, {}, 0
        for key in sorted(both, key=int, reverse=True):
            total += len(both[key][0])
            if any(self.smaller(p, total) for p in self.pairs):
                found[key] = both[key]
        return found

    def smaller(self, p: Pair, rank: int) -> bool:
        """Whether a product of that rank has fewer numbers than R."""
        return rank * (p.d + p.k) < p.d * p.k


@lru_cache(maxsize=16)
def _places(layout: Adapters, kinds: str, rank: int, device: torch.device) -> Tensor:
    """See ``Adapters.places``, and "R" for `Adapters.residuals`: found once, and not for each client in each round."""
    at = torch.arange(layout.length, device=device)
    others, found = torch.ones_like(at, dtype=torch.bool), [at[:0]]
    for a, b, residual, r, d, k in layout.pairs:
        if "A" in kinds:
            found.append(at[a : a + r * k].view(r, k)[:rank].reshape(-1))
        if "B" in kinds:
            found.append(at[b : b + d * r].view(d, r)[:, :rank].reshape(-1))
        frozen = [] if residual is None else [(residual, d * k)]
        found += [at[start : start + size] for start, size in frozen if "R" in kinds]
        for start, size in ((a, r * k), (b, d * r), *frozen):
            others[start : start + size] = False
    return torch.cat([*found, at[others]] if "+" in kinds else found)


def check_ranks(settings: Any) -> None:
    """Require the field ``ranks`` to be whole numbers, 1 or more."""
    place, given = f"{type(settings).__name__}.ranks", settings.ranks
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"{place} is {given!r:.80}; expected a sequence of ranks, such as (8, 4, 2)")
    for rank in given:
        whole(place, rank, 1)


def form(like: Tensor, *shape: int) -> Tensor:
    """A tensor of that shape, and the type of ``like``, without values."""
    return torch.empty(shape, dtype=like.dtype, device="meta")


def initial(x: Vector, clients: Clients, by: Callable[..., Vector]) -> Rebuilt:
    """The model before training, which all know."""
    return Rebuilt(x, [x[:0]] * len(clients), [by] * len(clients))


def gathered(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """A rule that returns the messages and their weights."""
    return rows, weights


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
