"""Fewer bits for every coordinate: sign, and random dithering to the levels of QSGD or to powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import one_of
from fedsim.compress import levels
from fedsim.compress.reader import expect_size, float_bytes, floats
from fedsim.compress.stacks import finite, on_stacks
from fedsim.errors import ConfigError
from fedsim.seeds import uniform_of
from fedsim.values import Packed, Site

Parts = tuple[Tensor, ...]
Norm: TypeAlias = Literal["l2", "linf"]
_DRAW = 102                                                # the tag of the randomness of dithering


@dataclass(frozen=True)
class Sign:
    """Scaled sign: (||x||_1 / d) sign(x), with sign(0) = +1.

    One bit cannot carry 0. ||C(x) - x||^2 = ||x||^2 - ||x||_1^2 / d, so it is contractive with
    alpha(x) = ||x||_1^2 / (d ||x||^2) >= 1/d. Positively homogeneous.

    Wire format: the scale, then a bit for each coordinate, 1 for negative; zeros fill the last byte.
    """

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: scale ``[]``, and which are negative, bool ``[d]``."""
        x = finite(x, self)
        return Packed(self, (*on_stacks(_mean_magnitude, x), x < 0), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        scale, negative = parts
        return torch.where(negative, -scale.unsqueeze(-1), scale.unsqueeze(-1))

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return levels.constant(parts[0], parts[0].element_size() + -(-d // 8))

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        return self.encode_rows(tuple(part[None] for part in parts), d).tobytes()

    def encode_rows(self, parts: Parts, d: int) -> np.ndarray:
        """Messages of a stack of vectors, which are of one length: bytes ``[c, m]``."""
        scales = np.frombuffer(float_bytes(parts[0]), np.uint8).reshape(len(parts[0]), -1)
        return np.concatenate([scales, np.packbits(parts[1].cpu().numpy(), axis=1)], 1)

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        return tuple(part[0] for part in self.decode_rows(np.frombuffer(data, np.uint8)[None], d, dtype))

    def decode_rows(self, rows: np.ndarray, d: int, dtype: torch.dtype) -> Parts:
        """Inverse of `encode_rows`; ValueError as of `decode`."""
        expect_size(rows[0].tobytes(), dtype.itemsize + -(-d // 8))
        packed = rows[:, dtype.itemsize :]
        if d % 8 and (packed[:, -1] & (0xFF >> d % 8)).any():
            raise ValueError("the bits that fill a message's last byte are not zero")
        scales = floats(rows[:, : dtype.itemsize].tobytes(), dtype)
        if (scales < 0).any():
            raise ValueError(f"the scale of a message of signs is {float(scales.min())}; expected 0 or more")
        return scales, torch.from_numpy(np.unpackbits(packed, axis=1, count=d).astype(bool))

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 + d."""
        return levels.constant(parts[0], 32 + d)

    def alpha(self, d: int) -> float:
        """1/d, attained by a vector with one entry."""
        return 1 / d

    def omega(self, d: int) -> float | None:
        """Biased, unless d = 1."""
        return 0.0 if d == 1 else None


def _mean_magnitude(x: Tensor) -> tuple[Tensor]:
    """||x||_1 / d ``[...]`` of ``x [..., d]``, also where the sum overflows."""
    mean = x.abs().mean(-1)
    if torch.isinf(mean).any():
        most = x.abs().amax(-1)
        mean = torch.where(torch.isinf(mean), most * (x.abs() / most.unsqueeze(-1)).mean(-1).clamp(max=1), mean)
    return (mean,)


def norm_of(x: Tensor, kind: Norm) -> Tensor:
    """Norm ``[...]`` of ``x [..., d]``, without overflow of the squares; the largest float where it exceeds that.

    Dithering is unbiased for any norm of at least ||x||_inf, and its bound on the variance falls with the norm.
    """
    most = x.abs().amax(-1)
    if kind == "linf":
        return most
    safe = torch.where(most > 0, most, 1)
    norm: Tensor = most * torch.linalg.vector_norm(x / safe.unsqueeze(-1), dim=-1)
    return norm.clamp(max=torch.finfo(x.dtype).max)


def _shares(x: Tensor, norm: Tensor) -> Tensor:
    """|x_i| / norm, in [0, 1]."""
    return (x.abs() / torch.where(norm > 0, norm, 1).unsqueeze(-1)).clamp(max=1)


class _Dithering:
    """Common part of the compressors that send a norm and signed levels."""

    s: int
    norm: Norm
    code: Literal["shortest"] | levels.LevelCode
    _MOST = 0                                              # levels

    def __post_init__(self) -> None:
        if not isinstance(self.s, int) or isinstance(self.s, bool) or not 1 <= self.s <= self._MOST:
            raise ConfigError(f"{type(self).__name__}.s is {self.s!r}; expected a whole number from 1 to {self._MOST}")
        one_of(self, "norm", ("l2", "linf"))
        one_of(self, "code", ("shortest", *levels.CODES))

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return levels.size(parts, self.s, self.code)

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        return levels.write(parts, self.s, self.code)

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        return levels.read(data, d, self.s, dtype)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """32 + d (1 + ceil(log2(s + 1)))."""
        return levels.constant(parts[0], 32 + d * levels.width(self.s))

    def alpha(self, d: int) -> None:
        """Unbiased, so contractive only after division by 1 + omega: ``Scaled``."""
        return


@dataclass(frozen=True)
class QSGD(_Dithering):
    """Random dithering to s levels (Alistarh et al., NeurIPS 2017); with s = 1 and norm linf, TernGrad.

    norm sign(x_i) l_i / s with l_i = floor(y_i), or one more with probability y_i - floor(y_i), y_i = s |x_i| / norm.
    Unbiased. omega = min(d/s^2, sqrt(d)/s) for l2 (Lemma 3.1); for linf, maximising over x,
    omega = (sqrt(1 + (d - 1)/s^2) - 1) / 2, attained by one entry of 1 and others of 1 / (2 s (1 + omega)). Positively
    homogeneous for a given draw. Wire format: see ``fedsim.compress.levels``.

    Args:
        s: levels above 0, up to 2^24: float32 tells no more apart.
        norm: l2 or linf.
        code: how levels are written: 1 + ceil(log2(s + 1)) bits for each (fixed), only those that are not 0 (elias), or
            whichever is shortest for a message.
    """

    s: int = 4
    norm: Norm = "l2"
    code: Literal["shortest"] | levels.LevelCode = "shortest"
    _MOST = 2**24

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: norm ``[]``, and signed levels ``[d]``, of the smallest integer type."""
        x = finite(x, self)
        norm, d = norm_of(x, self.norm), x.shape[-1]
        y = _shares(x, norm) * self.s
        low = y.floor()
        level = low + (uniform_of(at.key(_DRAW), d).to(x.dtype) < y - low)
        level = torch.where(x < 0, -level, level).to(levels.integer(self.s))
        return Packed(self, (norm, level), d)

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        norm, level = parts
        return level.to(norm.dtype) / self.s * norm.unsqueeze(-1)

    def omega(self, d: int) -> float:
        """See the class."""
        if self.norm == "linf":
            return (math.sqrt(1 + (d - 1) / self.s**2) - 1) / 2
        return min(d / self.s**2, math.sqrt(d) / self.s)


@dataclass(frozen=True)
class NaturalDithering(_Dithering):
    """Random dithering to powers of two: 0, 2^(1-s), ..., 1/2, 1 times the norm (Horvath et al., 2019).

    Unbiased. With u = 2^(1-s), the lowest level, and t = sqrt(d) u:

        l2      omega = t - 1 if t >= 9/4 or s = 1, which equal entries attain; else 1/8 + 2 t^2 / 9 at most
        linf    omega = (sqrt(1 + (d - 1) u^2) - 1) / 2, or (sqrt((1 + 2n)^2 + n) - 1 - 2n) / 2 with n = (d - 1) / 4 if
                that is more and s > 1; attained by one entry of 1 and equal others

    Proof. A share y = |x_i| / norm has the variance V = y (u - y) below u, and V = (y - a) (2a - y) between levels a
    and 2a. There V - w y^2 is at most u^2 / (4 (1 + w)), at y = u / (2 (1 + w)), and a^2 (9 / (4 (1 + w)) - 2), at
    y = 3a / (2 (1 + w)), which is positive for w < 1/8 only. l2: as the squares of shares add up to 1, omega is at most
    w + t^2 / (4 (1 + w)) for every w >= 1/8 (w > -1 if s = 1), which is least at w = t / 2 - 1 or else at w = 1/8.
    linf: one share is 1 and has no variance; omega is the w that equals the sum of the d - 1 other maxima. The paper
    has 1/8 + min(t, t^2) for both norms.

    Positively homogeneous for a given draw. Wire format: see ``fedsim.compress.levels``; level l stands for 2^(l-s).

    Args:
        s: levels above 0.
        norm: l2 or linf.
        code: how levels are written; see ``QSGD``.
    """

    s: int = 8
    norm: Norm = "l2"
    code: Literal["shortest"] | levels.LevelCode = "shortest"
    _MOST = 100

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: norm ``[]``, and signed levels, int8 ``[d]``."""
        x = finite(x, self)
        norm, d = norm_of(x, self.norm), x.shape[-1]
        y = _shares(x, norm)
        mantissa, exponent = torch.frexp(y)                # y = mantissa 2^exponent, mantissa in [1/2, 1)
        low = torch.where(y > 0, exponent - 1 + self.s, 0) # the level of the power of two below y
        above = torch.where(low > 0, 2 * mantissa - 1, y * 2.0 ** (self.s - 1))
        level = low.clamp(min=0) + (uniform_of(at.key(_DRAW), d).to(x.dtype) < above)
        level = torch.where(x < 0, -level, level).to(torch.int8)
        return Packed(self, (norm, level), d)

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        norm, level = parts
        powers = torch.tensor([0.0] + [2.0 ** (i - self.s) for i in range(1, self.s + 1)], device=norm.device)
        share = powers.to(norm.dtype)[level.long().abs()]
        return torch.where(level < 0, -share, share) * norm.unsqueeze(-1)

    def omega(self, d: int) -> float:
        """See the class."""
        u, n = 2.0 ** (1 - self.s), (d - 1) / 4
        if self.norm == "linf":
            low = (math.sqrt(1 + 4 * n * u**2) - 1) / 2
            high = n / 2 / (math.sqrt((1 + 2 * n) ** 2 + n) + 1 + 2 * n)   # the root without cancellation
            return low if self.s == 1 else max(low, high)
        t = math.sqrt(d) * u
        return t - 1 if t >= 9 / 4 or self.s == 1 else 1 / 8 + 2 * t * t / 9
