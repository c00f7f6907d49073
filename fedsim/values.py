"""Vectors, compressed vectors, tensors that are held elsewhere, and what compresses and unpacks them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Vector: TypeAlias = Tensor
"""A model, a gradient or a correction as one flat tensor ``[d]``."""


class Site(Protocol):
    """Where a vector is compressed: a client in a round, or the server."""

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the model's parameters, in the order in which the vector holds them."""

    def key(self, tag: int = 0) -> Tensor:
        """64 random bits, int64 0-dim, for ``fedsim.seeds.uniform_of``: a function of (seed, round, node, tag)."""


class Compressor(Protocol):
    """A frozen dataclass that turns vectors into shorter messages; ``fedsim.compress`` lists them.

    Methods other than ``encode`` and ``decode`` take one vector or a stack of them, ``[..., d]``.
    """

    def compress(self, x: Vector, at: Site) -> Packed:
        """The message for ``x [d]``."""

    def unpack(self, parts: tuple[Tensor, ...], d: int) -> Vector:
        """The vector ``[..., d]`` that a receiver of ``parts`` reads: bit for bit that of ``decode(encode(parts))``."""

    def nbytes(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        """Bytes of ``encode`` for each vector, int64 ``[...]``, without building them."""

    def encode(self, parts: tuple[Tensor, ...], d: int) -> bytes:
        """The bytes of one vector's message."""

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The parts that ``encode`` wrote; ValueError for anything else."""

    def paper_bits(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        """Bits as papers count them, int64 ``[...]``: 32 for each value that is sent, none for its index."""

    def alpha(self, d: int) -> float | None:
        """Largest a with E||C(x) - x||^2 <= (1 - a)||x||^2 for all x; None where C is not contractive."""

    def omega(self, d: int) -> float | None:
        """Smallest w with E||C(x) - x||^2 <= w||x||^2 for all x; None where C is biased."""


class Packed:
    """A compressed vector: what its message holds, and the compressor that can read it.

    Attributes:
        by: the compressor.
        parts: tensors of the message; with ``[c]`` in front in a stack of clients.
        d: length of the vector.
    """

    __slots__ = ("by", "d", "parts")

    def __init__(self, by: Compressor, parts: tuple[Tensor, ...], d: int) -> None:
        self.by, self.parts, self.d = by, parts, d

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vector; float32 where the message holds no number of its type."""
        return next((part.dtype for part in self.parts if part.is_floating_point()), torch.float32)

    def unpack(self) -> Tensor:
        """The vector that a receiver reads, ``[d]``, or ``[c, d]`` of a stack."""
        return self.by.unpack(self.parts, self.d)

    def __repr__(self) -> str:
        return f"Packed({self.by}, d={self.d})"


class Far(ABC):
    """A tensor of a node's memory that lives where a backend has put it. It never changes."""

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def fetch(self) -> Tensor:
        """Bring it here."""

    def saved(self) -> Tensor:
        """What a checkpoint holds of it: its value, or what the federation's ``Memory`` knows it by."""
        return self.fetch()
