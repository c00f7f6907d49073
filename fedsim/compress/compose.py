"""Compressors made of compressors: an unbiased one made contractive, and sparse messages with compressed values."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsim.compress.checks import LONG, is_compressor, needs_no_layers
from fedsim.compress.quantise import QSGD
from fedsim.compress.sparse import Parts, Sparsifier, place
from fedsim.compress.topk import TopK
from fedsim.errors import ConfigError
from fedsim.values import Compressor, Packed, Site


@dataclass(frozen=True)
class Scaled:
    """C / (1 + omega) for an unbiased C: contractive with alpha = 1 / (1 + omega).

    The receiver divides, so the message is that of C.

    Args:
        compressor: an unbiased one.
    """

    compressor: Compressor = field(default_factory=QSGD)

    def __post_init__(self) -> None:
        is_compressor(self)
        if self.compressor.omega(LONG) is None:
            raise ConfigError(
                f"Scaled.compressor is {self.compressor}, which is not unbiased; expected an unbiased one such as QSGD,"
                " Natural or RandK. A contractive one needs no scaling: use it as it is"
            )

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: those of C."""
        return Packed(self, self.compressor.compress(x, at).parts, x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return self.compressor.unpack(parts, d) * self.alpha(d)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return self.compressor.nbytes(parts, d)

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        return self.compressor.encode(parts, d)

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        return self.compressor.decode(data, d, dtype)

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """Those of C."""
        return self.compressor.paper_bits(parts, d)

    def alpha(self, d: int) -> float:
        """1 / (1 + omega)."""
        omega = self.compressor.omega(d)
        assert omega is not None
        return 1 / (1 + omega)

    def omega(self, d: int) -> float | None:
        """Biased, unless C is exact."""
        return 0.0 if self.compressor.omega(d) == 0 else None


@dataclass(frozen=True)
class Composed:
    """A sparse message whose values are compressed too, such as Top-k with quantised values.

    With a = alpha of the sparsifier, contractive with alpha = a alpha(k) for contractive values, and with
    alpha = a (1 - omega(k)) for unbiased ones of omega(k) < 1, as ||x - C_1(x)||^2 and the error of the values add up.
    If both are unbiased, so is this, with 1 + omega = (1 + omega_1) (1 + omega_2(k)).

    Wire format: that of the sparsifier, with the message of ``values`` where the values stand.

    Args:
        compressor: the sparsifier, TopK or RandK.
        values: compressor of its k values.
    """

    compressor: Compressor = field(default_factory=TopK)
    values: Compressor = field(default_factory=QSGD)

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Sparsifier):
            raise ConfigError(f"Composed.compressor is {self.compressor}; expected one that selects: TopK or RandK")
        needs_no_layers(self, "values")

    @property
    def by_layer(self) -> bool:
        """True if the sparsifier needs the model's layers."""
        return getattr(self.compressor, "by_layer", False)

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: where the values belong, then the parts of the values' message."""
        where, values = self.compressor.compress(x, at).parts
        return Packed(self, (where, *self.values.compress(values, at).parts), x.shape[-1])

    def unpack(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        where, k = parts[0], self._k(parts, d)
        return place(self._sparsifier.locate(where, d), self.values.unpack(parts[1:], k), d)

    def nbytes(self, parts: Parts, d: int) -> Tensor:
        """See ``fedsim.values.Compressor``."""
        return self._sparsifier.overhead(parts[0], d) + self.values.nbytes(parts[1:], self._k(parts, d))

    def encode(self, parts: Parts, d: int) -> bytes:
        """See ``fedsim.values.Compressor``."""
        return self._sparsifier.wrap(parts[0], d, self.values.encode(parts[1:], self._k(parts, d)))

    def decode(self, data: bytes, d: int, dtype: torch.dtype) -> Parts:
        """See ``fedsim.values.Compressor``."""
        where, k, tail = self._sparsifier.unwrap(data, d)
        return (where, *self.values.decode(tail, k, dtype))

    def paper_bits(self, parts: Parts, d: int) -> Tensor:
        """Those of the values."""
        return self.values.paper_bits(parts[1:], self._k(parts, d))

    def alpha(self, d: int) -> float | None:
        """See the class."""
        a, k = self.compressor.alpha(d), self._sparsifier.most(d)
        inner, omega = self.values.alpha(k), self.values.omega(k)
        if a is None:
            return None
        if inner is not None:
            return a * inner
        return a * (1 - omega) if omega is not None and omega < 1 else None

    def omega(self, d: int) -> float | None:
        """See the class."""
        one, two = self.compressor.omega(d), self.values.omega(self._sparsifier.most(d))
        return None if one is None or two is None else (1 + one) * (1 + two) - 1

    @property
    def _sparsifier(self) -> Sparsifier:
        assert isinstance(self.compressor, Sparsifier)
        return self.compressor

    def _k(self, parts: Parts, d: int) -> int:
        """Number of values."""
        return self._sparsifier.number(parts[0], d)
