"""Distributions of the speed of devices and links over clients, by their quantile functions.

What has the unit of the setting, seconds or bit/s, has no default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedsim.checks import in_range, non_negative, positive
from fedsim.errors import ConfigError


class Distribution(Protocol):
    """A distribution over clients."""

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """The values below which shares ``u [n]`` of all clients lie, float64 ``[n]``."""


@dataclass(frozen=True)
class LogNormal:
    """Log-normal: the logarithm is normal around that of the median.

    Args:
        median: half of the clients lie below.
        sigma: standard deviation of the natural logarithm, at most 10.
    """

    median: float
    sigma: float = 0.8

    def __post_init__(self) -> None:
        positive(self, "median")
        in_range(self, "sigma", 0, 10, closed=True)

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """See ``Distribution``."""
        with np.errstate(over="ignore"):                   # what is infinite is refused where it is used
            values: np.ndarray = self.median * np.exp(self.sigma * normal_quantile(u))
        return values


@dataclass(frozen=True)
class Uniform:
    """Uniform between two values.

    Args:
        low: the smallest value.
        high: the largest value.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        non_negative(self, "low", "high")
        if self.high < self.low:
            raise ConfigError(f"Uniform.high is {self.high}; expected at least low, {self.low}")

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """See ``Distribution``."""
        values: np.ndarray = self.low + (self.high - self.low) * u
        return values


@dataclass(frozen=True)
class HalfNormal:
    """Half-normal, ``least + |N(0, spread^2)|``: most clients are fast and a few are slow, as in FedBuff's simulator.

    Args:
        least: the smallest value.
        spread: standard deviation of the normal before its absolute value.
    """

    least: float
    spread: float

    def __post_init__(self) -> None:
        non_negative(self, "least", "spread")

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """See ``Distribution``."""
        values: np.ndarray = self.least + self.spread * normal_quantile((1 + u) / 2)
        return values


def normal_quantile(u: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal for ``u`` in [0, 1), multiples of 2^-53; finite at 0."""
    from scipy.special import ndtri  # slow to import, and needed with a clock only

    values: np.ndarray = ndtri(u + 2.0**-54)
    return values


DISTRIBUTIONS: tuple[type[Distribution], ...] = (LogNormal, Uniform, HalfNormal)
