"""Compressors: what turns a vector into a shorter message, with byte-exact codecs.

``compress`` works on one vector ``[d]``, on a stack ``[c, d]`` and below ``torch.vmap``; ``nbytes`` is what ``encode``
would give, to the byte; ``decode`` answers anything that ``encode`` does not write with a ValueError.
"""

from __future__ import annotations

from fedsim.compress.floats import Identity, Natural
from fedsim.compress.quantise import QSGD, NaturalDithering, Sign
from fedsim.compress.sparse import RandK, TopK
from fedsim.types import Compressor

COMPRESSORS: tuple[type[Compressor], ...] = (Identity, TopK, RandK, Sign, QSGD, NaturalDithering, Natural)
