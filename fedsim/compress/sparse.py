"""Sparse messages: which coordinates are held, and their values. Top-k and Rand-k.

Wire format: selector of the index code (1 byte, see ``indices.CODES``), k (1 to 5 bytes, 7 bits each), then without a
gap between them the indices in that code and the k values; zeros fill the last byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.checks import in_range, one_of
from fedsim.compress import bits, indices
from fedsim.compress.indices import CODES, IndexCode
from fedsim.compress.message import Reader, expect_size, float_bytes, floats, varint, varint_size
from fedsim.compress.rows import finite, on_stacks
from fedsim.compress.topk import largest
from fedsim.errors import ConfigError
from fedsim.seeds import uniform_of
from fedsim.types import Packed, Site

Parts = tuple[Tensor, ...]
_DRAW = 101                                                # the tag of Rand-k's randomness


def place(index: Tensor, values: Tensor, d: int) -> Tensor:
    """``values [..., k]`` at ``index [..., k]`` among ``d`` zeros."""
    return values.new_zeros((*values.shape[:-1], d)).scatter(-1, index, values)


def sparse_bytes(index: Tensor, d: int, code: IndexCode | Literal["shortest"], tail: bytes) -> bytes:
    """A sparse message whose values are ``tail``."""
    if code == "shortest":
        sizes = indices.sizes(indices.gaps_of(index), None, d).tolist()
        code = CODES[sizes.index(min(sizes))]
    head = bytes([CODES.index(code)]) + varint(len(index))
    return head + bits.join(indices.write(index.cpu().numpy(), d, code), tail)


def sparse_size(gaps: Tensor, held: Tensor | None, d: int, code: IndexCode | Literal["shortest"]) -> Tensor:
    """Bytes of `sparse_bytes` without its tail, int64 ``[...]``, of gaps ``[..., k]``; see ``indices.sizes``."""
    sizes = indices.sizes(gaps, held, d)
    size = sizes.amin(-1) if code == "shortest" else sizes[..., CODES.index(code)]
    count = size.new_full(size.shape, gaps.shape[-1]) if held is None else held.sum(-1)
    return 1 + varint_size(count) + (size + 7) // 8


def read_sparse(data: bytes, d: int) -> tuple[Tensor, bytes]:
    """Indices ``[k]`` and the bytes of the values; ValueError for anything that `sparse_bytes` does not write."""
    reader = Reader(data)
    code = CODES[reader.byte("selector of the index code", len(CODES))]
    k = reader.varint("number of values", d)
    stop = 8 * reader.left
    buffer = bits.padded(reader.rest())
    index, end = indices.read(buffer, stop, k, d, code)
    size = (stop - end) // 8
    if int(bits.fixed(buffer, end + 8 * size, 1, stop - end - 8 * size)[0]):
        raise ValueError("the bits that fill a message's last byte are not zero")
    return torch.from_numpy(index), bits.cut(buffer, end, size)


def _read_values(data: bytes, d: int, dtype: torch.dtype) -> Parts:
    index, tail = read_sparse(data, d)
    expect_size(tail, len(index) * dtype.itemsize)
    return index, floats(tail, dtype)


def _check_count(settings: TopK | RandK) -> None:
    in_range(settings, "fraction", 0, 1, closed=True)
    if settings.fraction == 0:
        raise ConfigError(f"{type(settings).__name__}.fraction is 0; expected above 0: something must be sent")
    k = settings.k
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ConfigError(f"{type(settings).__name__}.k is {k!r}; expected a whole number, 1 or more, or none")
    one_of(settings, "code", ("shortest", *CODES))


def _count(settings: TopK | RandK, d: int) -> int:
    """How many of ``d`` coordinates are kept: the fraction of them, rounded up."""
    if settings.k is None:
        return max(1, math.ceil(settings.fraction * d - 1e-6))     # 0.29 * 100 is more than 29 in floating point
    if settings.k > d:
        raise ConfigError(
            f"{type(settings).__name__}.k is {settings.k}, but the vector has {d} coordinates; expected {d} at most,"
            " or a fraction instead"
        )
    return settings.k


@dataclass(frozen=True)
class TopK:
    """The k coordinates of largest magnitude; of equal ones, those of lowest index.

    Contractive with alpha = k/d, which vectors of equal magnitudes attain. In the scopes of layers and blocks, each of
    d_b coordinates keeps ceil(k d_b / d) of them, so alpha is k/d again and slightly more than k are sent. Positively
    homogeneous.

    Args:
        fraction: share of the coordinates that are kept, rounded up.
        k: their number; replaces ``fraction``.
        scope: what competes: all coordinates (global), those of each parameter (layer), or blocks of so many.
        code: how indices are written; the shortest by default.
    """

    fraction: float = 0.01
    k: int | None = None
    scope: Literal["global", "layer"] | int = "global"
    code: Literal["shortest"] | IndexCode = "shortest"

    def __post_init__(self) -> None:
        _check_count(self)
        block = isinstance(self.scope, int) and not isinstance(self.scope, bool) and self.scope > 0
        if not block and self.scope not in ("global", "layer"):
            raise ConfigError(f"TopK.scope is {self.scope!r}; expected 'global', 'layer', or a block's size, 1 or more")

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: indices, int64 ``[k]``, and values ``[k]``."""
        x, d = finite(x, self), x.shape[-1]
        lengths = self._blocks(d, at)
        k = _count(self, d)

        def select(x: Tensor) -> Parts:
            found, start = [], 0
            for length, blocks in lengths:
                part = x[..., start : start + length * blocks].reshape(*x.shape[:-1], blocks, length)
                index = largest(part, -(-k * length // d)) + start
                found.append((index + length * torch.arange(blocks, device=x.device).unsqueeze(-1)).flatten(-2))
                start += length * blocks
            return (torch.cat(found, -1),)

        (index,) = on_stacks(select, x)
        return Packed(self, (index, x.gather(-1, index)), d)

    def _blocks(self, d: int, at: Site) -> list[tuple[int, int]]:
        """Lengths of the blocks, and how many of that length follow each other."""
        if self.scope == "global":
            return [(d, 1)]
        if self.scope == "layer":
            sizes = [math.prod(shape) for shape in at.shapes]
            if sum(sizes) != d:
                raise ConfigError(
                    f"TopK.scope is 'layer', but the vector has {d} coordinates and the model"
                    f" {sum(sizes)}; use 'global'"
                )
            return [(size, 1) for size in sizes if size]
        whole, rest = divmod(d, int(self.scope))
        return [(length, count) for length, count in ((int(self.scope), whole), (rest, 1)) if length and count]

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        index, values = parts
        return place(index, values, d)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        index, values = parts
        return sparse_size(indices.gaps_of(index), None, d, self.code) + index.shape[-1] * values.element_size()

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.types.Compressor``."""
        return sparse_bytes(parts[0], d, self.code, float_bytes(parts[1]))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.types.Compressor``."""
        least = _count(self, d)
        parts = _read_values(data, d, dtype)
        if len(parts[0]) < least or (self.scope == "global" and len(parts[0]) > least):
            raise ValueError(f"a message of {len(parts[0])} values; {self} sends {least} of {d}")
        return parts

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 for each value."""
        return values_bits(parts[-1])

    def alpha(self, d: int) -> float:
        """k/d."""
        return _count(self, d) / d

    def omega(self, d: int) -> float | None:
        """Biased, unless everything is kept."""
        return 0.0 if _count(self, d) == d else None


def values_bits(values: Tensor) -> Tensor:
    """32 for each of ``values [..., k]``."""
    return torch.full(values.shape[:-1], 32 * values.shape[-1], device=values.device)


@dataclass(frozen=True)
class RandK:
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
    code: Literal["shortest"] | IndexCode = "shortest"

    def __post_init__(self) -> None:
        _check_count(self)

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the key, int64 ``[]``, or indices, int64 ``[k]``; then values ``[k]``."""
        x, d = finite(x, self), x.shape[-1]
        k = _count(self, d)
        key = at.key(_DRAW).expand(x.shape[:-1])
        index = subset(key, d, k)
        values = x.gather(-1, index) * (d / k if self.scaled else 1.0)
        return Packed(self, (key.clone() if self.shared_seed else index, values), d)

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        where, values = parts
        return place(subset(where, d, values.shape[-1]) if self.shared_seed else where, values, d)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.types.Compressor``."""
        where, values = parts
        size = values.shape[-1] * values.element_size()
        if self.shared_seed:
            return torch.full_like(where, 8 + size)
        return sparse_size(indices.gaps_of(where), None, d, self.code) + size

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.types.Compressor``."""
        where, values = parts
        if self.shared_seed:
            return int(where).to_bytes(8, "big", signed=True) + float_bytes(values)
        return sparse_bytes(where, d, self.code, float_bytes(values))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.types.Compressor``."""
        k = _count(self, d)
        if self.shared_seed:
            expect_size(data, 8 + k * dtype.itemsize)
            return torch.tensor(int.from_bytes(data[:8], "big", signed=True)), floats(data[8:], dtype)
        parts = _read_values(data, d, dtype)
        if len(parts[0]) != k:
            raise ValueError(f"a message of {len(parts[0])} values; {self} sends {k} of {d}")
        return parts

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 for each value."""
        return values_bits(parts[-1])

    def alpha(self, d: int) -> float | None:
        """k/d of the unscaled one, in expectation."""
        k = _count(self, d)
        return k / d if k == d or not self.scaled else None

    def omega(self, d: int) -> float | None:
        """d/k - 1 of the scaled one."""
        k = _count(self, d)
        return d / k - 1 if k == d or self.scaled else None


def subset(key: Tensor, d: int, k: int) -> Tensor:
    """Ascending indices ``[..., k]`` of the subset of range(d) that the keys ``[...]`` stand for, uniform over them."""
    (index,) = on_stacks(lambda key: (largest(uniform_of(key, d), k),), key)
    return index
