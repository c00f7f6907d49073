"""The only source of randomness here: a counter-based generator (Philox)."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(purpose: str, seed: int, round: int) -> np.random.Generator:
    """A counter-based generator: a function of (purpose, seed, round), whoever asks and in whatever order."""
    key = hashlib.blake2b(f"{purpose}/{seed}/{round}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
