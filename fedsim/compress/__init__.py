"""Compressors: vectors as shorter messages, with byte-exact codecs.

``compress`` works on one vector ``[d]``, on a stack ``[c, d]`` and below ``torch.vmap``; ``nbytes`` is the
exact length of ``encode``'s result; ``decode`` raises ValueError for malformed bytes, and
`fedsim.messages.wire` for those that ``encode`` would write otherwise.
"""

from __future__ import annotations

from fedsim.compress.blockwise import Blockwise
from fedsim.compress.compose import Composed, Scaled
from fedsim.compress.dropping import BernoulliCompressor, Threshold
from fedsim.compress.floats import Identity, LowPrecision, Natural
from fedsim.compress.lowrank import LowRank, PowerSGD
from fedsim.compress.quantise import QSGD, NaturalDithering, Sign
from fedsim.compress.randk import RandK
from fedsim.compress.topk import TopK
from fedsim.values import Compressor

COMPRESSORS: dict[str, type[Compressor]] = {
    "Identity": Identity,
    "TopK": TopK,
    "RandK": RandK,
    "Threshold": Threshold,
    "Sign": Sign,
    "QSGD": QSGD,
    "NaturalDithering": NaturalDithering,
    "Natural": Natural,
    "LowPrecision": LowPrecision,
    "LowRank": LowRank,
    "PowerSGD": PowerSGD,
    "Bernoulli": BernoulliCompressor,
    "Scaled": Scaled,
    "Composed": Composed,
    "Blockwise": Blockwise,
}

__all__ = [
    "COMPRESSORS",
    "QSGD",
    "BernoulliCompressor",
    "Blockwise",
    "Composed",
    "Identity",
    "LowPrecision",
    "LowRank",
    "Natural",
    "NaturalDithering",
    "PowerSGD",
    "RandK",
    "Scaled",
    "Sign",
    "Threshold",
    "TopK",
]
