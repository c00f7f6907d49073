"""Vectors, compressed vectors, handles of tensors stored elsewhere, and the compressor protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Vector: TypeAlias = Tensor
"""A model, gradient or correction as one flat tensor ``[d]``."""


class Site(Protocol):
    """Site of a compression: a client in a round, or the server."""

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the model's parameters, in the order of the flat vector."""

    def key(self, tag: int = 0) -> Tensor:
        """Random key of 64 bits, int64 0-dim, for ``fedsim.seeds.uniform_of``; depends on (seed, round, node, tag)."""


class Compressor(Protocol):
    """A frozen dataclass that compresses vectors; see ``fedsim.compress`` for the implementations.

    Methods other than ``encode`` and ``decode`` accept one vector or a stack of them, ``[..., d]``.
    """

    def compress(self, x: Vector, at: Site) -> Packed:
        """Compress ``x [d]``."""

    def unpack(self, parts: tuple[Tensor, ...], d: int) -> Vector:
        """Decompress ``parts`` to ``[..., d]``, bit for bit as a receiver of ``encode(parts)`` does."""

    def nbytes(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        """Size of each encoded vector in bytes, int64 ``[...]``, without encoding it."""

    def encode(self, parts: tuple[Tensor, ...], d: int) -> bytes:
        """Serialise the message of one vector."""

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Parse the bytes of ``encode``; raises ValueError for any other input."""

    def paper_bits(self, parts: tuple[Tensor, ...], d: int) -> Tensor:
        """Size in bits as papers count them, int64 ``[...]``: 32 for each value sent, none for its index."""

    def alpha(self, d: int) -> float | None:
        """Largest a with E||C(x) - x||^2 <= (1 - a)||x||^2 for all x; None if C is not contractive."""

    def omega(self, d: int) -> float | None:
        """Smallest w with E||C(x) - x||^2 <= w||x||^2 for all x; None if C is biased."""


class Packed:
    """A compressed vector: the tensors of its message, and the compressor that unpacks them.

    Attributes:
        by: the compressor.
        parts: tensors of the message; with a leading axis ``[c]`` in a stack of clients.
        d: length of the vector.
    """

    __slots__ = ("by", "d", "parts")

    def __init__(self, by: Compressor, parts: tuple[Tensor, ...], d: int) -> None:
        self.by, self.parts, self.d = by, parts, d

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vector; float32 if the message has no floating-point tensor."""
        return next((part.dtype for part in self.parts if part.is_floating_point()), torch.float32)

    def unpack(self) -> Tensor:
        """Decompress to ``[d]``, or ``[c, d]`` for a stack."""
        return self.by.unpack(self.parts, self.d)

    def __repr__(self) -> str:
        return f"Packed({self.by}, d={self.d})"


class Far(ABC):
    """Handle of an immutable tensor in a node's memory, stored at a place of the backend's choice."""

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def fetch(self) -> Tensor:
        """Load the tensor into this process."""

    def saved(self) -> Tensor:
        """Tensor for a checkpoint: the value, or its identifier in the federation's ``Memory``."""
        return self.fetch()
