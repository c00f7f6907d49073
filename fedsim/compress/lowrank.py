"""Matrices of low rank, one for each parameter with two axes or more: M ~ P Q^T with P [m, r] and Q [l, r].

A parameter [m, a, b, ...] is the matrix [m, a b ...]. Those with fewer axes, and those that two factors would not
shorten, are sent uncompressed.

Wire format: number of layers, and for each its m and l, or its length and 0 if it is sent uncompressed (1 to 5 bytes
each, 7 bits in a byte); then for each layer P and Q, or its numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import at_least_one
from fedsim.compress.reader import Reader, float_bytes, floats, varint, varint_size
from fedsim.compress.stacks import finite, on_stacks
from fedsim.errors import ConfigError
from fedsim.seeds import uniform_of
from fedsim.values import Packed, Site

Parts = tuple[Tensor, ...]
Layout = list[tuple[int, int]]
_DRAW = 105                                                # the tag of the first directions of PowerSGD


class _Factors(ABC):
    """A compressor whose parts are the layout, int64 ``[L, 2]``, and all numbers in a row, ``[N]``."""

    rank: int
    by_layer = True

    def __post_init__(self) -> None:
        at_least_one(self, "rank")

    @abstractmethod
    def compress(self, x: Tensor, at: Site) -> Packed:
        """See ``fedsim.values.Compressor``."""

    @abstractmethod
    def factors(self, m: Tensor, *guess: Tensor) -> tuple[Tensor, Tensor]:
        """P ``[..., m, r]`` and Q ``[..., l, r]`` of matrices ``[..., m, l]``, from a guess ``[..., min(m, l), r]``."""

    def layout(self, d: int, at: Site) -> Layout:
        """(m, l) of each layer, or (length, 0) if it is sent uncompressed."""
        if sum(math.prod(shape) for shape in at.shapes) != d:
            raise ConfigError(
                f"{type(self).__name__} needs the model's layers {[tuple(s) for s in at.shapes]}; their numbers do not"
                f" add up to the {d} of this vector"
            )
        sizes = [(math.prod(shape[:1]), math.prod(shape[1:])) for shape in at.shapes]
        return [(m, n) if self._pays(m, n) else (m * n, 0) for m, n in sizes]

    def _pays(self, m: int, n: int) -> bool:
        return self.rank * (m + n) < m * n

    def pack(self, x: Tensor, layout: Layout, guess: Tensor | None = None) -> Packed:
        """The message; ``guess [..., sum of r min(m, l)]`` holds the first guesses of Q."""

        def run(x: Tensor, *guess: Tensor) -> Parts:
            bad = ~torch.isfinite(x).all(-1, keepdim=True)
            x = torch.where(bad, 0, x)
            out, at, used = [], 0, 0
            for m, n in layout:
                part = x[..., at : at + m * max(n, 1)]
                at += m * max(n, 1)
                if not n:
                    out.append(part)
                    continue
                size = self.rank * min(m, n)
                q = [g[..., used : used + size].reshape(*g.shape[:-1], min(m, n), self.rank) for g in guess]
                used += size
                out += [factor.flatten(-2) for factor in self.factors(part.reshape(*x.shape[:-1], m, n), *q)]
            numbers = torch.cat(out, -1)
            where = torch.tensor(layout, device=x.device).expand(*x.shape[:-1], len(layout), 2)
            return where.clone(), torch.where(bad, torch.nan, numbers)

        given = (finite(x, self),) if guess is None else (finite(x, self), guess)
        where, numbers = on_stacks(run, *given)
        return Packed(self, (where, finite(numbers, self, "computed")), x.shape[-1])   # a factor may overflow

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""

        def run(where: Tensor, numbers: Tensor) -> tuple[Tensor]:
            out = []
            for p, q in self._layers(where, numbers):
                if q is None:
                    out.append(p)
                    continue
                m = p[..., :, None, 0] * q[..., None, :, 0]    # no matrix product: its bits depend on the stack's size
                for r in range(1, self.rank):
                    m = m + p[..., :, None, r] * q[..., None, :, r]
                out.append(m.flatten(-2))
            return (torch.cat(out, -1),)

        return on_stacks(run, *parts)[0]

    def _layers(self, where: Tensor, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """P and Q of each layer, or its numbers; all vectors of a stack have the layout of the first."""
        at = 0
        for m, n in where.reshape(-1, *where.shape[-2:])[0].tolist():
            size = self.rank * m if n else m
            first = numbers[..., at : at + size]
            at += size
            if not n:
                yield first, None
                continue
            second = numbers[..., at : at + self.rank * n]
            at += self.rank * n
            yield first.reshape(*first.shape[:-1], m, self.rank), second.reshape(*second.shape[:-1], n, self.rank)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        where, numbers = parts
        layers = len(varint(where.shape[-2]))
        return varint_size(where).sum((-2, -1)) + layers + numbers.shape[-1] * numbers.element_size()

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        sizes = parts[0].flatten().tolist()
        return varint(len(parts[0])) + b"".join(map(varint, sizes)) + float_bytes(parts[1])

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        reader = Reader(data)
        layers = reader.varint("number of layers", min(d + 255, len(data) // 2))
        sizes = (reader.varint("rows or columns of a layer", d) for _ in range(2 * layers))
        layout = np.fromiter(sizes, np.int64, 2 * layers).reshape(-1, 2)
        m, n = layout.T.astype(np.float64)
        pays = (n == 0) | (self.rank * (m + n) < m * n)
        if (m * np.maximum(n, 1)).sum() != d or not pays.all():
            raise ValueError(f"layers {layout.tolist()[:4]} ... do not make a vector of {d} that {self} sends")
        numbers = floats(reader.rest(), dtype)
        if len(numbers) != (size := int(np.where(n > 0, self.rank * (m + n), m).sum())):
            raise ValueError(f"truncated or over-long message: {len(numbers)} numbers, not {size}")
        return torch.from_numpy(layout), numbers

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 for each number."""
        return torch.full(parts[1].shape[:-1], 32 * parts[1].shape[-1], device=parts[1].device)

    def alpha(self, d: int) -> float:
        """r / sqrt(d) at least, for no matrix of d numbers has min(m, l) above that."""
        return min(1.0, self.rank / math.isqrt(d))

    def omega(self, d: int) -> float | None:
        """Biased."""
        return None


@dataclass(frozen=True)
class LowRank(_Factors):
    """The best approximation of each matrix by one of rank r, by singular value decomposition.

    Contractive with alpha = min over layers of r / min(m, l), which multiples of orthogonal matrices attain.
    Positively homogeneous. Parts and wire format: see ``fedsim.compress.lowrank``.

    Args:
        rank: r.
    """

    rank: int = 1

    def compress(self, x: Tensor, at: Site) -> Packed:
        """See ``fedsim.values.Compressor``."""
        return self.pack(x, self.layout(x.shape[-1], at))

    def factors(self, m: Tensor, *guess: Tensor) -> tuple[Tensor, Tensor]:
        """Left singular vectors times singular values, and right singular vectors."""
        u, s, vh = torch.linalg.svd(m, full_matrices=False)
        r = self.rank
        return u[..., :r] * s[..., None, :r], vh[..., :r, :].mT


@dataclass(frozen=True)
class PowerSGD(_Factors):
    """One step of subspace iteration for a matrix of low rank (Vogels et al., NeurIPS 2019).

    P = orth(M Q), Q <- M^T P, output P Q^T. The output is a projection of M, so ||C(x) - x|| <= ||x|| always. From
    random directions Q, drawn anew in every round, contractive in expectation with alpha = min over layers of
    r / min(m, l): M V lies in the span of P for an orthonormal basis V of Q, and E||M V||^2 = (r / l) ||M||^2; where
    l > m it is M^T that is decomposed. Positively homogeneous for given directions.

    Started from the Q of the last message (warm start), the iteration approaches the singular vectors of a slowly
    changing M. For a warm start, pass on the ``memory`` of the last message:

        packed = powersgd.warm(x, local, memory)
        memory = powersgd.memory(packed)

    Args:
        rank: r.
    """

    rank: int = 1

    def compress(self, x: Tensor, at: Site) -> Packed:
        """From random directions."""
        return self.warm(x, at, self.start(x, at))

    def start(self, x: Tensor, at: Site) -> Tensor:
        """Random directions, ``[sum of r min(m, l)]`` normal numbers: the memory before the first message."""
        count = sum(self.rank * min(m, n) for m, n in self.layout(x.shape[-1], at))
        u = uniform_of(at.key(_DRAW), 2 * count).to(x.dtype)
        radius = torch.sqrt(-2 * torch.log1p(-u[..., :count].clamp(max=1 - 2.0**-24)))
        return radius * torch.cos(2 * math.pi * u[..., count:])

    def warm(self, x: Tensor, at: Site, memory: Tensor) -> Packed:
        """From the directions in ``memory``."""
        return self.pack(x, self.layout(x.shape[-1], at), memory)

    def memory(self, packed: Packed) -> Tensor:
        """The directions that the next message can start from."""

        def run(where: Tensor, numbers: Tensor) -> tuple[Tensor]:
            layers = self._layers(where, numbers)
            kept = [(q if q.shape[-2] <= p.shape[-2] else p).flatten(-2) for p, q in layers if q is not None]
            return (torch.cat([numbers[..., :0], *kept], -1),)

        return on_stacks(run, *packed.parts)[0]

    def factors(self, m: Tensor, *guess: Tensor) -> tuple[Tensor, Tensor]:
        """One power step from the narrower side."""
        if m.shape[-1] > m.shape[-2]:
            q, p = self.factors(m.mT, *guess)
            return p, q
        p, _ = torch.linalg.qr(m @ guess[0])
        return p, m.mT @ p
