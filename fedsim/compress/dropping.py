"""Messages whose length depends on the values or on a coin: a threshold, and all or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.checks import in_range, one_of, positive, share
from fedsim.compress import indices
from fedsim.compress.reader import Reader, expect_size, float_bytes, floats
from fedsim.compress.sparse import Code, Parts, place, read_sparse, sparse_bytes, sparse_size
from fedsim.compress.stacks import finite
from fedsim.seeds import uniform_of
from fedsim.values import Packed, Site

_DRAW = 104                                                # the tag of the coin


@dataclass(frozen=True)
class Threshold:
    """The coordinates that reach a threshold: |x_i| >= tau ||x||_inf, or >= tau.

    With the relative threshold contractive with alpha = 1 / (1 + (d - 1) tau^2), which one entry of 1 and others just
    below tau approach, and positively homogeneous; with an absolute one neither. Wire format: that of Top-k.

    Args:
        tau: the threshold; in [0, 1] if relative.
        relative: to the largest magnitude.
        code: how indices are written; the shortest by default.
    """

    tau: float = 0.01
    relative: bool = True
    code: Code = "shortest"

    def __post_init__(self) -> None:
        if self.relative:
            in_range(self, "tau", 0, 1, closed=True)
        else:
            positive(self, "tau")
        one_of(self, "code", ("shortest", *indices.CODES))

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: the vector ``[d]`` with zeros, as the number of values is not known beforehand."""
        x = finite(x, self)
        size = x.abs()
        least = self.tau * size.amax(-1, keepdim=True) if self.relative else self.tau
        return Packed(self, (torch.where((size >= least) & (size > 0), x, x - x),), x.shape[-1])   # NaN - NaN is NaN

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return parts[0]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        held = parts[0] != 0
        k = held.sum(-1)
        return sparse_size(indices.sizes_of_held(held), k, self.code) + k * parts[0].element_size()

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        index = parts[0].nonzero()[:, 0]
        return sparse_bytes(index, d, self.code, float_bytes(parts[0][index]))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        index, tail = read_sparse(data, d)
        expect_size(tail, len(index) * dtype.itemsize)
        values = floats(tail, dtype)
        if not values.all():
            raise ValueError("a message holds a zero, which a threshold does not send")
        return (place(index, values, d),)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 for each value that is not zero."""
        return 32 * (parts[0] != 0).sum(-1)

    def alpha(self, d: int) -> float | None:
        """See the class."""
        return 1 / (1 + (d - 1) * self.tau**2) if self.relative else None

    def omega(self, d: int) -> float | None:
        """Biased, unless nothing is dropped."""
        return 0.0 if self.relative and (self.tau == 0 or d == 1) else None


@dataclass(frozen=True)
class BernoulliCompressor:
    """All or nothing: x/p with probability p, else 0.

    Unbiased with omega = 1/p - 1, with equality for every vector. Positively homogeneous for a given coin. Wire format:
    one byte, 1 or 0, and after a 1 the values.

    Args:
        p: probability of sending, above 0.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        share(self, "p")

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: whether it is sent, bool ``[]``, and the values ``[d]``, or zeros."""
        x = finite(x, self)
        sent = (uniform_of(at.key(_DRAW), 1)[..., 0] < self.p).expand(x.shape[:-1])
        return Packed(self, (sent.clone(), torch.where(sent.unsqueeze(-1), x / self.p, x - x)), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return parts[1]

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return 1 + parts[0].long() * (d * parts[1].element_size())

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        return b"\1" + float_bytes(parts[1]) if bool(parts[0]) else b"\0"

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        reader = Reader(data)
        sent = reader.byte("whether values follow", 2)
        expect_size(rest := reader.rest(), sent * d * dtype.itemsize)
        return torch.tensor(bool(sent)), floats(rest, dtype) if sent else torch.zeros(d, dtype=dtype)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """1, and 32 d where it is sent."""
        return 1 + 32 * d * parts[0].long()

    def alpha(self, d: int) -> float | None:
        """Unbiased, so contractive only after division by 1 + omega: ``Scaled``."""
        return 1.0 if self.p == 1 else None

    def omega(self, d: int) -> float:
        """1/p - 1."""
        return 1 / self.p - 1
