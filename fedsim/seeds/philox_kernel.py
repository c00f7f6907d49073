"""``uniform_of`` as one kernel on a GPU: the same integers as in tensor operations, of which those take 150 launches.

Only imported where there is Triton, which comes with PyTorch's builds for CUDA. The kernel is an operation of PyTorch's
dispatcher, so that it runs under ``torch.vmap``, and what records a local step sees it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS = 512
"""Pairs of draws of one program."""


@triton.jit  # type: ignore[untyped-decorator]
def draw(keys, out, n, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the draws ``[n]`` of one key, two for each counter."""
    row = tl.program_id(1).to(tl.int64)
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    key = tl.load(keys + row)
    k0, k1 = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = pair.to(tl.uint32)
    c1, c2, c3 = c0 * 0, c0 * 0, c0 * 0
    m0, m1 = tl.full((PAIRS,), 0xD2511F53, tl.uint32), tl.full((PAIRS,), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0, high1, low1 = tl.umulhi(m0, c0), m0 * c0, tl.umulhi(m1, c2), m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + tl.full((), 0x9E3779B9, tl.uint32), k1 + tl.full((), 0xBB67AE85, tl.uint32)
    first = ((c0.to(tl.uint64) << 32) | c1.to(tl.uint64)) >> 11
    second = ((c2.to(tl.uint64) << 32) | c3.to(tl.uint64)) >> 11
    scale: tl.constexpr = 1.1102230246251565e-16           # 2^-53
    at = out + row * n + 2 * pair
    tl.store(at, first.to(tl.int64).to(tl.float64) * scale, mask=2 * pair < n)
    tl.store(at + 1, second.to(tl.int64).to(tl.float64) * scale, mask=2 * pair + 1 < n)


@torch.library.custom_op("fedsim::uniform_of", mutates_args=())
def uniform_of(key: Tensor, n: int) -> Tensor:
    """See ``fedsim.seeds.uniform_of``."""
    keys = key.reshape(-1).contiguous()
    out = torch.empty(len(keys), n, dtype=torch.float64, device=key.device)
    if out.numel():
        draw[triton.cdiv(n, 2 * PAIRS), len(keys)](keys, out, n, PAIRS)
    return out.view(*key.shape, n)


@uniform_of.register_vmap
def _(info: Any, in_dims: Any, key: Tensor, n: int) -> tuple[Tensor, int]:
    return uniform_of(key.movedim(in_dims[0], 0), n), 0
