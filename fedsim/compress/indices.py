"""Index codes: encodings of the k indices, out of d, that a sparse message holds. Indices ascend.

    packed   k numbers of I(d) = ceil(log2 d) bits
    bitmap   d bits, 1 where a coordinate is held
    gamma, delta, omega   Elias' codes of the gaps i_j - i_(j-1), with i_(-1) = -1
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from fedsim.compress import bits, elias
from fedsim.compress.bits import Bits
from fedsim.compress.stacks import on_stacks

IndexCode: TypeAlias = Literal["packed", "bitmap", "gamma", "delta", "omega"]
CODES: tuple[IndexCode, ...] = get_args(IndexCode)
"""In the order of their selectors; of equally short ones the first is chosen."""


def index_bits(d: int) -> int:
    """I(d), bits of an index below ``d``."""
    return (d - 1).bit_length()


def sizes(index: Tensor, d: int) -> Tensor:
    """Bits of every code for ascending indices ``[..., k]``: int64 ``[..., len(CODES)]``."""
    gaps = torch.diff(index, prepend=index.new_full((*index.shape[:-1], 1), -1))
    sums = [length.sum(-1) for length in elias.code_lengths(gaps).values()]
    constant = [torch.full_like(sums[0], size) for size in (index.shape[-1] * index_bits(d), d)]
    return torch.stack([*constant, *sums], -1)


def sizes_of_held(held: Tensor) -> Tensor:
    """The same for a mask ``held [..., d]`` of the coordinates that are held."""

    def run(held: Tensor) -> tuple[Tensor]:
        d = held.shape[-1]
        row, gaps, _ = gaps_of(held)
        sums = [add_up(length, row, held) for length in elias.code_lengths(gaps).values()]
        return (torch.stack([held.sum(-1) * index_bits(d), torch.full_like(sums[0], d), *sums], -1),)

    return on_stacks(run, held)[0]


def gaps_of(held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all coordinates that are held in a stack ``[..., d]``: number of the vector, gap to the last one, and place in
    the stack as one long vector.
    """
    flat = held.flatten().nonzero()[:, 0]
    row, index = flat // held.shape[-1], flat % held.shape[-1]
    first = torch.diff(row, prepend=row.new_full((1,), -1)) > 0
    return row, torch.where(first, index + 1, torch.diff(index, prepend=index[:1])), flat


def add_up(numbers: Tensor, row: Tensor, stack: Tensor) -> Tensor:
    """Sums of ``numbers [N]`` by vector of ``stack [..., d]``, int64 ``[...]``."""
    lead = stack.shape[:-1]
    return numbers.new_zeros(lead.numel()).index_add(0, row, numbers).view(lead)


def write(index: np.ndarray, d: int, code: IndexCode) -> Bits:
    """The indices in a code."""
    if code == "packed":
        return bits.pack_fixed(index, index_bits(d))
    if code == "bitmap":
        held = np.zeros(d, bool)
        held[index] = True
        return Bits(np.packbits(held), d)
    return bits.pack(*elias.codewords(np.diff(index, prepend=-1), code))


def read(buffer: np.ndarray, stop: int, k: int, d: int, code: IndexCode) -> tuple[np.ndarray, int]:
    """``k`` ascending indices below ``d`` from the start of a ``bits.padded`` buffer, and the bit behind them.

    Raises:
        ValueError: they do not end by bit ``stop``, do not ascend, or reach ``d``.
    """
    size = k * index_bits(d) if code == "packed" else d
    if code in ("packed", "bitmap"):
        if size > stop:
            raise ValueError(f"truncated message: {size} bits of indices ({code}) expected, {stop} there")
        index = bits.fixed(buffer, 0, k, index_bits(d)) if code == "packed" else _read_bitmap(buffer, d)
    else:
        gaps, size = elias.read(buffer, 0, stop, k, code)  # type: ignore[arg-type]
        index = np.cumsum(gaps) - 1
    if len(index) != k:
        raise ValueError(f"a bitmap of {len(index)} coordinates in a message of {k}")
    if k and (index[-1] >= d or (np.diff(index) <= 0).any()):
        raise ValueError(f"indices of a message do not ascend, or reach {d}")
    return index, size


def _read_bitmap(buffer: np.ndarray, d: int) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(buffer[: -(-d // 8)], count=d))
