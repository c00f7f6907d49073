"""The table of compressors that every check runs over, and a site to compress at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.compress import (
    QSGD,
    BernoulliCompressor,
    Blockwise,
    Composed,
    Identity,
    LowPrecision,
    LowRank,
    Natural,
    NaturalDithering,
    PowerSGD,
    RandK,
    Scaled,
    Sign,
    Threshold,
    TopK,
)
from fedsim.compress.own import OwnCompressor
from fedsim.values import Site

SHAPES = (torch.Size([5, 3]), torch.Size([4]), torch.Size([2, 3, 3]), torch.Size([]))
"""Parameters of a model of 38 numbers."""
D = 38


@dataclass(frozen=True)
class At:
    """A site whose randomness is its number."""

    number: int | Tensor = 0
    shapes: tuple[torch.Size, ...] = SHAPES

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        if isinstance(self.number, Tensor):                # below vmap
            return self.number * 1_000_003 + tag * 7_919
        bits = seeds.bits(self.number, f"test {tag}", 0, 0)
        return torch.tensor(int(bits.astype(np.int64)))


@dataclass(frozen=True)
class Above:
    """A compressor that says only what it makes of a vector: numbers above a level, others are 0."""

    level: float = 0.0
    negative: float = 0.0

    def compress(self, x: Tensor, at: Site) -> Tensor:
        """What is sent, with ``negative`` in place of 0, of which -0.0 is one."""
        return torch.where(x.abs() > self.level, x, torch.full_like(x, self.negative))


COMPRESSORS: dict[str, Any] = {
    "identity": Identity(),
    "top 3": TopK(k=3),
    "top 10 %": TopK(0.1),
    "top all": TopK(1.0),
    "top by layer": TopK(0.2, scope="layer"),
    "top by block": TopK(k=7, scope=5),
    "rand 3": RandK(k=3),
    "rand unscaled": RandK(0.3, scaled=False),
    "rand indices": RandK(0.2, shared_seed=False),
    "sign": Sign(),
    "QSGD": QSGD(),
    "QSGD fixed": QSGD(1, code="fixed"),
    "QSGD elias": QSGD(2, code="elias"),
    "QSGD many levels": QSGD(1000),
    "QSGD most levels": QSGD(2**24),
    "TernGrad": QSGD(1, norm="linf"),
    "natural dithering": NaturalDithering(),
    "natural dithering linf": NaturalDithering(3, norm="linf"),
    "natural": Natural(),
    "threshold": Threshold(0.1),
    "threshold absolute": Threshold(1.0, relative=False, code="packed"),
    "fp16": LowPrecision("fp16"),
    "bf16": LowPrecision("bf16"),
    "fp8 e4m3": LowPrecision("e4m3"),
    "fp8 e5m2": LowPrecision("e5m2"),
    "SVD": LowRank(1),
    "PowerSGD": PowerSGD(1),
    "Bernoulli": BernoulliCompressor(0.3),
    "scaled QSGD": Scaled(QSGD(2)),
    "scaled rand": Scaled(RandK(0.2)),
    "scaled natural": Scaled(Natural()),
    "blocks of QSGD": Blockwise(QSGD(2), 7),
    "blocks of signs": Blockwise(Sign(), 19),
    "one block of rand": Blockwise(RandK(0.3), 100),
    "top of signs": Composed(TopK(0.3), Sign()),
    "top of QSGD": Composed(TopK(0.3), QSGD(8)),
    "top of low precision": Composed(TopK(0.3, scope="layer"), LowPrecision("e4m3")),
    "rand of natural": Composed(RandK(0.3), Natural()),
    "rand of scaled QSGD": Composed(RandK(0.3, scaled=False, shared_seed=False), Scaled(QSGD(8))),
    "own": OwnCompressor(Above(2.0)),
    "own of few values": OwnCompressor(Above(10.0, negative=-0.0)),
    "own dense": OwnCompressor(Above(0.5, negative=0.25)),
} | {f"top {code}": TopK(0.2, code=code) for code in ("packed", "bitmap", "gamma", "delta", "omega")}

NOT_HOMOGENEOUS = {"natural", "threshold absolute", "fp16", "bf16", "fp8 e4m3", "fp8 e5m2", "scaled natural"} | {
    "top of low precision",
    "rand of natural",
    "own",
    "own of few values",
    "own dense",
}
HOMOGENEOUS = [name for name in COMPRESSORS if name not in NOT_HOMOGENEOUS]
RANDOM = [
    name
    for name in COMPRESSORS
    if any(word in name for word in ("rand", "QSGD", "Tern", "natural", "Bernoulli", "Power", "scaled"))
]


def vector(seed: int, d: int = D, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of very different sizes, some of them zero."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(d, generator=draw, dtype=torch.float64) * torch.exp(2 * torch.randn(d, generator=draw).double())
    return (x * (torch.rand(d, generator=draw) < 0.8)).to(dtype)
