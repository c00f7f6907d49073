"""Top-k."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.compress.selection import largest
from fedsim.compress.sparse import Code, Sparsifier, check_count, count, index_size, read_sparse, sparse_bytes
from fedsim.compress.stacks import finite
from fedsim.errors import ConfigError
from fedsim.values import Packed, Site


@dataclass(frozen=True)
class TopK(Sparsifier):
    """The k coordinates of largest magnitude; of equal ones, those of lowest index.

    Contractive with alpha = k/d, which vectors of equal magnitudes attain. In the scopes of layers and blocks, each of
    d_b coordinates keeps ceil(k d_b / d) of them, so alpha is k/d again and slightly more than k are sent. Positively
    homogeneous.

    Args:
        fraction: share of the coordinates that are kept, rounded up.
        k: their number; replaces ``fraction``.
        scope: the coordinates that compete: all (global), those of each parameter (layer), or blocks of so many.
        code: how indices are written; the shortest by default.
    """

    fraction: float = 0.01
    k: int | None = None
    scope: Literal["global", "layer"] | int = "global"
    code: Code = "shortest"

    def __post_init__(self) -> None:
        check_count(self)
        block = isinstance(self.scope, int) and not isinstance(self.scope, bool) and self.scope > 0
        if not block and self.scope not in ("global", "layer"):
            raise ConfigError(f"TopK.scope is {self.scope!r}; expected 'global', 'layer', or a block's size, 1 or more")

    @property
    def by_layer(self) -> bool:
        """True if it needs the model's layers."""
        return self.scope == "layer"

    def compress(self, x: Tensor, at: Site) -> Packed:
        """Parts: indices, int64 ``[k]``, and values ``[k]``."""
        x, d = finite(x, self), x.shape[-1]
        k = count(self, d)
        if self.scope == "global":
            index = largest(x, k)
            return Packed(self, (index, x.gather(-1, index)), d)
        found, start = [], 0
        for length, blocks in self._blocks(d, at):
            part = x[..., start : start + length * blocks].reshape(*x.shape[:-1], blocks, length)
            index = largest(part, -(-k * length // d)) + start
            found.append((index + length * torch.arange(blocks, device=x.device).unsqueeze(-1)).flatten(-2))
            start += length * blocks
        index = torch.cat(found, -1)
        return Packed(self, (index, x.gather(-1, index)), d)

    def _blocks(self, d: int, at: Site) -> list[tuple[int, int]]:
        """Lengths of the blocks, and how many of that length follow each other."""
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

    def most(self, d: int) -> int:
        """k; where layers or blocks round up, no bound better than d is known."""
        return count(self, d) if self.scope == "global" else d

    def number(self, where: Tensor, d: int) -> int:
        """As many as there are indices."""
        return where.shape[-1]

    def locate(self, where: Tensor, d: int) -> Tensor:
        """The indices themselves."""
        return where

    def overhead(self, where: Tensor, d: int) -> Tensor:
        """Bytes of a message without its values, int64 ``[...]``."""
        return index_size(where, d, self.code)

    def wrap(self, where: Tensor, d: int, tail: bytes) -> bytes:
        """The message whose values are written as ``tail``."""
        return sparse_bytes(where, d, self.code, tail)

    def unwrap(self, data: bytes, d: int) -> tuple[Tensor, int, bytes]:
        """Indices, their number, and the bytes of the values; ValueError for what `wrap` does not write."""
        least = count(self, d)
        index, tail = read_sparse(data, d)
        if len(index) < least or (self.scope == "global" and len(index) > least):
            raise ValueError(f"a message of {len(index)} values; {self} sends {least} of {d}")
        return index, len(index), tail

    def alpha(self, d: int) -> float:
        """k/d."""
        return count(self, d) / d

    def omega(self, d: int) -> float | None:
        """Biased, unless everything is kept."""
        return 0.0 if count(self, d) == d else None
