"""Feature skew: every client sees its inputs through its own distortion, on top of any partition.

Rotation is the usual test of personalisation on images. Noise is the "noise-based feature imbalance" of NIID-Bench (Li
et al., ICDE 2022, arXiv:2102.02079), whose code uses the noise level as a standard deviation, as this module does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedsim.errors import PartitionError
from fedsim.partition.deal import check_count


class Skew(Protocol):
    """A distortion of inputs that depends on the client."""

    def apply(self, x: Tensor, client: int, n: int, seed: int) -> Tensor:
        """Inputs ``x [B, ...]`` as client ``client`` of ``n`` sees them, a new tensor; deterministic."""
        ...


def client_generator(seed: int, client: int, n: int) -> np.random.Generator:
    """The stream of one client."""
    check_count("seed", seed, minimum=0)
    if not 0 <= client < n:
        raise PartitionError(f"there is no client {client}: clients are 0 to {n - 1}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(client,))))


def check_level(name: str, value: float) -> None:
    """Raise unless ``value`` is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise PartitionError(f"{name} must be finite and 0 or more, got {value!r}")


def check_real(x: Tensor) -> None:
    """Raise unless the inputs are one tensor of real numbers."""
    if not isinstance(x, Tensor):
        fix = "write a skew of your own, with a method apply(x, client, n, seed)"
        raise PartitionError(f"this skew distorts one tensor, and inputs are a {type(x).__name__} of tensors: {fix}")
    if not x.is_floating_point():
        raise PartitionError(f"feature skew needs real-valued inputs, got {x.dtype}: it does not apply to token ids")


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn images ``[B, C, H, W]`` counter-clockwise about their centre, bilinear, filled with each image's minimum."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = images.shape[-2:]
    turn = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]   # in units of half a width or height
    theta = torch.tensor(turn, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    return grid_sample(images - low, grid, padding_mode="zeros", align_corners=False) + low


@dataclass(frozen=True)
class RotationSkew:
    """Each client's images are turned by its own angle.

    Args:
        max_degrees: angles lie between -max_degrees and max_degrees.
        angles: ``even`` spaces the clients evenly over that range, ``random`` draws each client's angle uniformly.
    """

    max_degrees: float = 45.0
    angles: Literal["even", "random"] = "even"

    def __post_init__(self) -> None:
        check_level("max_degrees", self.max_degrees)
        if self.angles not in ("even", "random"):
            raise PartitionError(f"angles must be 'even' or 'random', got {self.angles!r}")

    def degrees(self, client: int, n: int, seed: int) -> float:
        """The angle of one client of ``n``, in degrees; a lone client is not turned when spacing is even."""
        draw = client_generator(seed, client, n).random()
        share = draw if self.angles == "random" else client / (n - 1) if n > 1 else 0.5
        return self.max_degrees * (2 * share - 1)

    def apply(self, x: Tensor, client: int, n: int, seed: int) -> Tensor:
        """Images ``x [B, H, W]`` or ``[B, C, H, W]`` turned by the client's angle, of the same shape."""
        check_real(x)
        if x.ndim not in (3, 4):
            raise PartitionError(f"rotation needs images [B, H, W] or [B, C, H, W], got shape {list(x.shape)}")
        images = x if x.ndim == 4 else x[:, None]
        return rotate(images, self.degrees(client, n, seed)).reshape(x.shape)


@dataclass(frozen=True)
class NoiseSkew:
    """Client i of 0..n-1 adds Gaussian noise of standard deviation ``sigma * (i + 1) / n``, the last client the most.

    Args:
        sigma: standard deviation at the last client, in units of the inputs.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        check_level("sigma", self.sigma)

    def apply(self, x: Tensor, client: int, n: int, seed: int) -> Tensor:
        """Inputs ``x [B, ...]`` plus noise, a function of (seed, client, shape)."""
        check_real(x)
        noise = client_generator(seed, client, n).standard_normal(tuple(x.shape), dtype=np.float32)
        return x + self.sigma * (client + 1) / n * torch.from_numpy(noise).to(x)
