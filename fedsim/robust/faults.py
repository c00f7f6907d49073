"""Attacks that need no knowledge of the others: noise, reversed or empty messages, and faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import one_of, positive, share
from fedsim.robust.attack import Attack, Scene
from fedsim.seeds import uniform_of


@dataclass(frozen=True)
class UniformNoise(Attack):
    """Random messages: uniform in [0, scale) in every coordinate, with a positive mean as in Flag Aggregator's code.

    Args:
        scale: upper end of the range.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "scale")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return self.scale * scene.uniform()


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Random messages: N(0, std^2) in every coordinate.

    Args:
        std: standard deviation.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "std")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        u = scene.uniform().double().clamp(min=2**-60)
        noise: Tensor = self.std * torch.special.ndtri(u)
        return noise.to(scene.own)


@dataclass(frozen=True)
class SignFlip(Attack):
    """The attacker's own message with its sign flipped.

    Args:
        scale: factor of its length; 10 in Flag Aggregator's code ("reverse").
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "scale")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return -self.scale * scene.own


@dataclass(frozen=True)
class Zero(Attack):
    """The attacker's own message, with coordinates drawn anew in every round replaced by 0.

    Args:
        fraction: share of the coordinates; 1 is the message 0, 0.1 Flag Aggregator's lost packets.
    """

    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "fraction")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return scene.own * (scene.uniform() >= self.fraction)


@dataclass(frozen=True)
class NonFinite(Attack):
    """Messages of NaN or infinity. A rule leaves them out, as faulty; without one the run stops.

    Args:
        value: "nan" or "inf".
    """

    value: Literal["nan", "inf"] = "nan"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "value", ("nan", "inf"))

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return torch.full_like(scene.own, float(self.value))


@dataclass(frozen=True)
class Drop(Attack):
    """Messages that do not arrive: the server, or the neighbours, go on without them.

    Args:
        p: probability that a message is lost, in every round anew.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "p")

    def lost(self, scene: Scene) -> np.ndarray:
        """See ``Attack``."""
        lost: np.ndarray = (uniform_of(scene.key.cpu(), len(scene.own)) < self.p).numpy()
        return lost
