"""The only source of randomness: Philox4x32-10, a counter-based generator (Salmon et al., SC 2011).

A draw is a function of (seed, purpose, round, node, index) alone: it depends neither on the process that draws it, nor
on the order of draws, nor on interruptions. Everything is vectorised over nodes and indices.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

Words: TypeAlias = np.ndarray
T = TypeVar("T", np.ndarray, Tensor)

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 2**15                                             # draws generated at a time
_MIXING = (
    *((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))),
    (np.uint64(31), np.uint64(0)),
)  # of SplitMix64
_FEISTEL = 12                                              # rounds; with six, two places of nine are still uneven


def philox(key: tuple[int, int], c0: Words, c1: Words, c2: Words, c3: Words) -> tuple[Words, Words, Words, Words]:
    """Four arrays of 32 random bits (as uint64) for the 128-bit counters (c0, c1, c2, c3) under a 64-bit key."""
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def bits(
    seed: int,
    purpose: str,
    round: int | np.ndarray,
    node: int | np.ndarray,
    index: int | np.ndarray = 0,
    epoch: int | np.ndarray = 0,
) -> np.ndarray:
    """64 random bits for every (round, node, index, epoch), broadcast together; ``purpose`` separates the streams."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    node, index, epoch, round = np.broadcast_arrays(node, index, epoch, round)
    counters = (np.asarray(c).astype(np.uint64) for c in (index, epoch, round, node))
    high, low, _, _ = philox(key, *counters)
    words: np.ndarray = (high << _HALF) | low
    return words


def uniform(
    seed: int, purpose: str, round: int | np.ndarray, node: int | np.ndarray, index: int | np.ndarray = 0
) -> np.ndarray:
    """Uniform float64 draws from [0, 1) with 53 random bits, one for every (node, index)."""
    draws: np.ndarray = bits(seed, purpose, round, node, index) >> np.uint64(11)
    return draws.astype(np.float64) * 2.0**-53


def shuffles(
    seed: int, purpose: str, round: int | np.ndarray, nodes: np.ndarray, sizes: np.ndarray, epochs: np.ndarray
) -> list[np.ndarray]:
    """Independent permutations of ``range(size)``: the rows of an ``[epochs, size]`` array for each node."""
    if not epochs.any():
        return [np.empty((0, size), np.int64) for size in sizes.tolist()]
    repeats = np.repeat(sizes, epochs)  # one segment for each (node, epoch)
    width = _width(len(repeats))
    if (repeats == repeats[0]).all() and (epochs == epochs[0]).all():
        return list(equal_shuffles(seed, purpose, round, nodes, int(repeats[0]), int(epochs[0])))
    ends = np.cumsum(repeats)
    index = np.arange(ends[-1]) - np.repeat(ends - repeats, repeats)
    epoch = np.concatenate([np.arange(e) for e in epochs])
    of, turn = (np.repeat(np.repeat(each, epochs), repeats) for each in (nodes, np.broadcast_to(round, nodes.shape)))
    draws = bits(seed, purpose, turn, of, index, np.repeat(epoch, repeats))
    segment = np.repeat(np.arange(len(repeats), dtype=np.uint64), repeats)
    order = np.argsort((segment << (np.uint64(64) - width)) | (draws >> width))  # sorted by segment, then randomly
    parts = np.split(index[order], np.cumsum(sizes * epochs)[:-1])
    return [part.reshape(e, s) for part, e, s in zip(parts, epochs, sizes, strict=True)]


def equal_shuffles(
    seed: int, purpose: str, round: int | np.ndarray, nodes: np.ndarray, size: int, epochs: int
) -> np.ndarray:
    """`shuffles` of nodes ``[c]`` with equal sizes and epochs, ``[c, epochs, size]``."""
    epoch, turn = np.arange(epochs)[:, None], np.broadcast_to(round, nodes.shape)[:, None, None]
    draws = bits(seed, purpose, turn, nodes[:, None, None], np.arange(size), epoch)
    order: np.ndarray = np.argsort(draws >> _width(len(nodes) * epochs), axis=-1)
    return order


def _width(segments: int) -> np.uint64:
    """Bits of a draw that do not count, as some sorts need them for the number of the segment."""
    return np.uint64(max(1, segments.bit_length()))


def places(seed: int, purpose: str, round: int, n: int, k: int) -> np.ndarray:
    """The first ``k`` places of a random permutation of ``range(n)``, in time that depends on ``k`` alone.

    A Feistel network permutes the cells of a square that holds ``range(n)``; a value outside walks on until it is
    inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    side = math.isqrt(n - 1) + 1
    keys = root(seed, purpose, round, np.arange(_FEISTEL))

    def permuted(cells: np.ndarray) -> np.ndarray:
        left, right = np.divmod(cells, side)
        for key in keys:
            mixed = split(key, right).view(np.uint64) % np.uint64(side)
            left, right = right, (left + mixed.astype(np.int64)) % side
        return left * side + right

    found = permuted(np.arange(k))
    while len(outside := np.flatnonzero(found >= n)):
        found[outside] = permuted(found[outside])
    return found


def key(seed: int, purpose: str, round: int | np.ndarray, nodes: np.ndarray) -> Tensor:
    """Random keys of the nodes, int64 ``[c]``, for ``uniform_of``."""
    return torch.from_numpy(bits(seed, purpose, round, nodes).view(np.int64).copy())


def root(seed: int, purpose: str, round: int | np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Random keys of the nodes, int64 ``[c]``, for ``split``: ten times faster than ``key`` for few nodes."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return split(split(np.frombuffer(digest, np.int64), np.atleast_1d(round)), nodes)


def split(key: T, index: T) -> T:
    """Key number ``index`` of those that follow from ``key``; int64, broadcast: SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014).
    """
    z: Any = key + (index + 1) * -0x61C8864680B583EB       # the published constants as signed; wraps to 64 bits
    mixed: T
    if isinstance(z, np.ndarray):
        mixed = _mixed(z)
        return mixed
    z = (z ^ (z >> 30) & 0x3FFFFFFFF) * -0x40A7B892E31B1A47          # >> keeps the sign
    z = (z ^ (z >> 27) & 0x1FFFFFFFFF) * -0x6B2FB644ECCEEE15
    mixed = z ^ (z >> 31) & 0x1FFFFFFFF
    return mixed


def _mixed(z: Any) -> Any:
    """The same without signs and in place, which is faster for many."""
    words, shifted = z.view(np.uint64), np.empty(z.shape, np.uint64)
    for shift, factor in _MIXING:
        np.right_shift(words, shift, out=shifted)
        np.bitwise_xor(words, shifted, out=words)
        if factor:
            np.multiply(words, factor, out=words)
    return z


def uniform_of(key: Tensor, n: int) -> Tensor:
    """Uniform float64 draws ``[..., n]`` from [0, 1) with 53 random bits, as a function of ``key``, int64 ``[...]``.

    The same generator in tensor operations, so that it runs under ``torch.vmap`` and on any device; on a CPU, in blocks
    that fit in the processor's cache, on a GPU as one kernel where there is Triton.
    """
    if key.is_cuda and _has_kernel():
        from fedsim.seeds import philox_kernel

        drawn: Tensor = philox_kernel.uniform_of(key, n)
        return drawn
    block = _BLOCK if key.device.type == "cpu" else max(n, 1)
    parts = [_uniform_of(key.unsqueeze(-1), start, min(n, start + block)) for start in range(0, max(n, 1), block)]
    return torch.cat(parts, -1) if len(parts) != 1 else parts[0]


@cache
def _has_kernel() -> bool:
    """Return whether ``fedsim.seeds.philox_kernel`` can be imported."""
    return torch.version.cuda is not None and find_spec("triton") is not None


def _uniform_of(key: Tensor, start: int, stop: int) -> Tensor:
    """Draws ``start`` (even) up to, without, ``stop`` of keys ``[..., 1]``."""
    low = 0xFFFFFFFF
    k0, k1 = key & low, (key >> 32) & low
    c0 = torch.arange(start // 2, -(-stop // 2), device=key.device) + torch.zeros_like(key)
    c1, c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):
        p0, p1 = int(_MULTIPLIERS[0]) * c0, int(_MULTIPLIERS[1]) * c2      # wrapped to 64 bits; >> keeps the sign
        c0, c1, c2, c3 = ((p1 >> 32) & low) ^ c1 ^ k0, p1 & low, ((p0 >> 32) & low) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + _WEYL[0]) & low, (k1 + _WEYL[1]) & low
    words = torch.stack([(c0 << 32) | c1, (c2 << 32) | c3], -1).flatten(-2)[..., : stop - start]
    return ((words >> 11) & (2**53 - 1)).double() * 2.0**-53
