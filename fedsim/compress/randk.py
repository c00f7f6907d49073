"""Rand-k."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.compress.reader import Reader
from fedsim.compress.selection import largest
from fedsim.compress.sparse import Code, Sparsifier, check_count, count, index_size, read_sparse, sparse_bytes
from fedsim.compress.stacks import finite
from fedsim.seeds import uniform_of
from fedsim.values import Packed, Site

_DRAW = 101                                                # the tag of the randomness


@dataclass(frozen=True)
class RandK(Sparsifier):
    """k coordinates drawn uniformly without replacement.

    Scaled by d/k it is unbiased with omega = d/k - 1; unscaled, contractive in expectation with alpha = k/d; both with
    equality for every vector. Positively homogeneous for a given draw.

    Wire format with a shared seed: 8 bytes of the key (most significant first) from which the receiver draws the same
    coordinates, then the k values.

    Args:
        fraction: share of the coordinates that are kept, rounded up.
        k: their number; replaces ``fraction``.
        scaled: multiply the values by d/k.
        shared_seed: send the key of the draw instead of indices.
        code: how indices are written without a shared seed; the shortest by default.
    """

    fraction: float = 0.01
    k: int | None = None
    scaled: bool = True
    shared_seed: bool = True
    code: Code = "shortest"

    def __post_init__(self) -> None:
        check_count(self)

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the key, int64 ``[]``, or indices, int64 ``[k]``; then values ``[k]``."""
        x, d = finite(x, self), x.shape[-1]
        k = count(self, d)
        key = at.key(_DRAW).expand(x.shape[:-1])
        index = subset(key, d, k)
        values = x.gather(-1, index) * (d / k if self.scaled else 1.0)
        values = values.masked_fill(~torch.isfinite(x).all(-1, keepdim=True), torch.nan)   # a bad vector must show
        return Packed(self, (key.clone() if self.shared_seed else index, values), d)

    def most(self, d: int) -> int:
        """k."""
        return count(self, d)

    def number(self, where: Tensor, d: int) -> int:
        """k."""
        return count(self, d)

    def locate(self, where: Tensor, d: int) -> Tensor:
        """The indices, drawn again from a shared seed."""
        return subset(where, d, count(self, d)) if self.shared_seed else where

    def overhead(self, where: Tensor, d: int) -> Tensor:
        """Bytes of a message without its values, int64 ``[...]``."""
        if self.shared_seed:
            return torch.full_like(where, 8)
        return index_size(where, d, self.code)

    def wrap(self, where: Tensor, d: int, tail: bytes) -> bytes:
        """The message whose values are written as ``tail``."""
        if self.shared_seed:
            return int(where).to_bytes(8, "big", signed=True) + tail
        return sparse_bytes(where, d, self.code, tail)

    def unwrap(self, data: bytes, d: int) -> tuple[Tensor, int, bytes]:
        """Key or indices, number of values, and their bytes; ValueError for what `wrap` does not write."""
        k = count(self, d)
        if self.shared_seed:
            reader = Reader(data)
            return torch.tensor(int.from_bytes(reader.take(8), "big", signed=True)), k, reader.rest()
        index, tail = read_sparse(data, d)
        if len(index) != k:
            raise ValueError(f"a message of {len(index)} values; {self} sends {k} of {d}")
        return index, k, tail

    def alpha(self, d: int) -> float | None:
        """k/d of the unscaled one, in expectation."""
        k = count(self, d)
        return k / d if k == d or not self.scaled else None

    def omega(self, d: int) -> float | None:
        """d/k - 1 of the scaled one."""
        k = count(self, d)
        return d / k - 1 if k == d or self.scaled else None


def subset(key: Tensor, d: int, k: int) -> Tensor:
    """Ascending indices ``[..., k]`` of the subset of range(d) that the keys ``[...]`` stand for, uniform over them."""
    return largest(uniform_of(key, d), k)
