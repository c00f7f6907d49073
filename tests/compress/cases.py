"""The table of compressors that every check runs over, and a site to compress at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.compress import QSGD, Identity, Natural, NaturalDithering, RandK, Sign, TopK

SHAPES = (torch.Size([5, 3]), torch.Size([4]), torch.Size([2, 3, 3]), torch.Size([]))
"""Parameters of a model of 38 numbers."""
D = 38


@dataclass(frozen=True)
class At:
    """A site whose randomness is its number."""

    number: int | Tensor = 0
    shapes: tuple[torch.Size, ...] = SHAPES

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.types.Site``."""
        if isinstance(self.number, Tensor):                # below vmap
            return self.number * 1_000_003 + tag * 7_919
        bits = seeds.bits(self.number, f"test {tag}", 0, 0)
        return torch.tensor(int(bits.astype(np.int64)))


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
    "TernGrad": QSGD(1, norm="linf"),
    "natural dithering": NaturalDithering(),
    "natural dithering linf": NaturalDithering(3, norm="linf"),
    "natural": Natural(),
} | {f"top {code}": TopK(0.2, code=code) for code in ("packed", "bitmap", "gamma", "delta", "omega")}

HOMOGENEOUS = [name for name in COMPRESSORS if name != "natural"]
RANDOM = [name for name in COMPRESSORS if name.startswith(("rand", "QSGD", "Tern", "natural"))]


def vector(seed: int, d: int = D, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of very different sizes, some of them zero."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(d, generator=draw, dtype=torch.float64) * torch.exp(2 * torch.randn(d, generator=draw).double())
    return (x * (torch.rand(d, generator=draw) < 0.8)).to(dtype)
