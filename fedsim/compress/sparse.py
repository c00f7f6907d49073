"""Sparse messages: which coordinates are held, and their values.

Wire format: selector of the index code (1 byte, see ``indices.CODES``), k (1 to 5 bytes, 7 bits each), then without a
gap between them the indices in that code and the k values; zeros fill the last byte.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from fedsim.checks import one_of, share
from fedsim.compress import bits, indices
from fedsim.compress.indices import CODES, IndexCode
from fedsim.compress.reader import Reader, expect_size, float_bytes, floats, varint, varint_size
from fedsim.errors import ConfigError

Parts = tuple[Tensor, ...]
Code = Literal["shortest"] | IndexCode


class Sparsifier(ABC):
    """A compressor whose parts are where its values belong (indices, or what they follow from) and the values."""

    @abstractmethod
    def most(self, d: int) -> int:
        """Most values that a message can have."""

    @abstractmethod
    def number(self, where: Tensor, d: int) -> int:
        """Number of values in a message; the same for all of a stack."""

    @abstractmethod
    def locate(self, where: Tensor, d: int) -> Tensor:
        """Indices ``[..., k]`` of the values."""

    @abstractmethod
    def overhead(self, where: Tensor, d: int) -> Tensor:
        """Bytes of a message without its values, int64 ``[...]``."""

    @abstractmethod
    def wrap(self, where: Tensor, d: int, tail: bytes) -> bytes:
        """The message whose values are written as ``tail``."""

    @abstractmethod
    def unwrap(self, data: bytes, d: int) -> tuple[Tensor, int, bytes]:
        """Positions of the values, their number, and their bytes; ValueError for bytes that `wrap` does not write."""

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        where, values = parts
        return place(self.locate(where, d), values, d)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        where, values = parts
        return self.overhead(where, d) + values.shape[-1] * values.element_size()

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        where, values = parts
        return self.wrap(where, d, float_bytes(values))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        where, k, tail = self.unwrap(data, d)
        expect_size(tail, k * dtype.itemsize)
        return where, floats(tail, dtype)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 for each value."""
        values = parts[-1]
        return torch.full(values.shape[:-1], 32 * values.shape[-1], device=values.device)


def place(index: Tensor, values: Tensor, d: int) -> Tensor:
    """``values [..., k]`` at ``index [..., k]`` among ``d`` zeros."""
    return values.new_zeros((*values.shape[:-1], d)).scatter(-1, index, values)


def sparse_bytes(index: Tensor, d: int, code: Code, tail: bytes) -> bytes:
    """A sparse message whose values are ``tail``."""
    if code == "shortest":
        sizes = indices.sizes(index, d).tolist()
        code = CODES[sizes.index(min(sizes))]
    head = bytes([CODES.index(code)]) + varint(len(index))
    return head + bits.join(indices.write(index.cpu().numpy(), d, code), tail)


def sparse_size(sizes: Tensor, count: Tensor, code: Code) -> Tensor:
    """Bytes of `sparse_bytes` without its tail, int64 ``[...]``, by ``sizes [..., 5]`` of indices and k ``[...]``."""
    size = sizes.amin(-1) if code == "shortest" else sizes[..., CODES.index(code)]
    return 1 + varint_size(count) + (size + 7) // 8


def index_size(index: Tensor, d: int, code: Code) -> Tensor:
    """The same, of indices ``[..., k]``."""
    sizes = indices.sizes(index, d)
    return sparse_size(sizes, torch.full_like(sizes[..., 0], index.shape[-1]), code)


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


def check_count(settings: Any) -> None:
    share(settings, "fraction")
    k = settings.k
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ConfigError(f"{type(settings).__name__}.k is {k!r}; expected a whole number, 1 or more, or none")
    one_of(settings, "code", ("shortest", *CODES))


def count(settings: Any, d: int) -> int:
    """Number of coordinates kept out of ``d``: ``k``, or the fraction of them, rounded up."""
    k: int | None = settings.k
    if k is None:
        return max(1, math.ceil(float(settings.fraction) * d - 1e-6))     # 0.29 * 100 is more than 29 in floating point
    if k > d:
        raise ConfigError(
            f"{type(settings).__name__}.k is {k}, but the vector has {d} coordinates; expected {d} at most, or a"
            " fraction instead"
        )
    return k
