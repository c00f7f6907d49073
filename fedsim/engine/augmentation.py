"""Augmentation of the samples that a client trains on: a function of inputs ``[B, ...]`` and keys, int64 ``[B]``.

Every sample of a minibatch, of a large batch and of a chunk of a whole shard has a key, which follows from
``Batch.key`` and its place there. A function whose rows depend on the same row of its arguments alone, as those here
do, gives a sample the same form on every backend, whatever padding and whichever other clients are beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.checks import at_least_one, in_range, non_negative, whole
from fedsim.engine.mixup import Mixup
from fedsim.engine.purity import generator_states
from fedsim.engine.snapshot import alike
from fedsim.errors import ConfigError, explained
from fedsim.seeds import split
from fedsim.tree import Samples, count, flat, mapped, written
from fedsim.types import Augmentation, Batch


@dataclass(frozen=True)
class CropAndFlip:
    """Random crops of images padded with zeros, and horizontal flips.

    Args:
        padding: rows and columns of zeros on each side, of which a crop of the image's size is taken at random.
        crop: probability of a crop.
        flip: probability of a flip.
    """

    padding: int = 4
    crop: float = 1.0
    flip: float = 0.5

    def __post_init__(self) -> None:
        whole("CropAndFlip.padding", self.padding, 0, "; 0 is for flips alone")
        in_range(self, "crop", 0, 1, closed=True)
        in_range(self, "flip", 0, 1, closed=True)

    def __call__(self, x: Tensor, key: Tensor) -> Tensor:
        h, w = _size(self, x)
        if self.padding >= min(h, w):
            raise ConfigError(f"CropAndFlip.padding is {self.padding}, and images are {h} x {w}; expected less")
        u = _uniform(key, 4)
        corner = (u[:, :2] * (2 * self.padding + 1)).long()
        corner = torch.where(u[:, 2:3] < self.crop, corner, self.padding)
        column = torch.arange(w, device=x.device)
        column = torch.where(u[:, 3:] < self.flip, w - 1 - column, column) + corner[:, 1:]
        row = torch.arange(h, device=x.device) + corner[:, :1]
        pixel = (row.unsqueeze(2) * (w + 2 * self.padding) + column.unsqueeze(1)).flatten(1)
        padded = pad(x, [self.padding] * 4).flatten(2)
        return padded.gather(2, pixel.unsqueeze(1).expand(-1, x.shape[1], -1)).view(x.shape)


@dataclass(frozen=True)
class Cutout:
    """A square of each image set to zero (DeVries and Taylor, arXiv 1708.04552); it may reach over the edge.

    Args:
        size: side of the square in pixels.
    """

    size: int = 8

    def __post_init__(self) -> None:
        at_least_one(self, "size")

    def __call__(self, x: Tensor, key: Tensor) -> Tensor:
        within, u = [], _uniform(key, 2)
        for axis, n in enumerate(_size(self, x)):
            start = (u[:, axis : axis + 1] * n).long() - self.size // 2
            place = torch.arange(n, device=x.device)
            within.append((place >= start) & (place < start + self.size))
        return x.masked_fill((within[0].unsqueeze(2) & within[1].unsqueeze(1)).unsqueeze(1), 0)


@dataclass(frozen=True)
class Jitter:
    """Random brightness and contrast of each image; its values are not clamped, as they may be standardized.

    Args:
        brightness: largest amount that is added to all values of an image, in their unit, or subtracted.
        contrast: largest relative change of their distances to their mean, at most 1.
    """

    brightness: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        non_negative(self, "brightness")
        in_range(self, "contrast", 0, 1, closed=True)

    def __call__(self, x: Tensor, key: Tensor) -> Tensor:
        _size(self, x)
        shift, factor = (2 * _uniform(key, 2) - 1).to(x.dtype).view(-1, 2, 1, 1, 1).unbind(1)
        mean = x.double().mean((1, 2, 3), keepdim=True).to(x.dtype)   # one float, in whatever order it is summed
        return mean + (1 + self.contrast * factor) * (x - mean) + self.brightness * shift


@dataclass(frozen=True)
class Chain:
    """Two augmentations, one after the other; either may be a chain.

    Args:
        first: what is done first.
        then: what is done to its result.
    """

    first: Augmentation = field(default_factory=CropAndFlip)
    then: Augmentation = field(default_factory=Cutout)

    def __post_init__(self) -> None:
        check_callable("Chain.first", self.first)
        check_callable("Chain.then", self.then)
        if _pairs(self.first):
            raise ConfigError("Chain.first has Mixup, which comes last, as the others know nothing of mixed targets")

    def __call__(self, x: Samples, key: Tensor) -> Samples:
        one, other = split(key, torch.arange(2, device=key.device).unsqueeze(1))
        return self.then(self.first(x, one), other)


AUGMENTATIONS = (CropAndFlip, Cutout, Jitter, Mixup, Chain)


def check_callable(place: str, by: object) -> None:
    """Raise ConfigError unless ``by``, of setting ``place``, is a function or a component made."""
    if isinstance(by, type) or not callable(by):
        raise ConfigError(
            f"{place} is {by!r:.200}; expected an augmentation such as CropAndFlip(), or a function of inputs [B, ...]"
            " and keys [B] that returns inputs"
        )


def augmented(by: Augmentation | None, batch: Batch) -> Batch:
    """A batch ``[B, ...]``, or ``[c, B, ...]`` of several clients, with the inputs and targets that training sees.

    Raises:
        CodeError: a user's function raised.
    """
    if by is None:
        return batch
    assert batch.key is not None
    form = batch.key.shape                                 # negative numbers, as dropout has taken the others
    keys = split(batch.key, torch.arange(-1, -1 - form[-1], -1, device=batch.key.device))
    with explained(f"local.augment {_name(by)}"):
        return _applied(by, batch, keys)


def _applied(by: Augmentation, batch: Batch, keys: Tensor) -> Batch:
    if isinstance(by, Mixup):
        return by.mixed(batch, keys)
    if isinstance(by, Chain) and _pairs(by.then):
        one, other = split(keys.flatten(), torch.arange(2, device=keys.device).unsqueeze(1))
        return _applied(by.then, _applied(by.first, batch, one.view(keys.shape)), other.view(keys.shape))
    x = by(mapped(lambda t: t.flatten(0, keys.dim() - 1), batch.x), keys.flatten())
    return batch._replace(x=mapped(lambda t: t.unflatten(0, keys.shape), x))


def _pairs(by: Augmentation) -> bool:
    """Whether an augmentation pairs the samples of a minibatch."""
    return isinstance(by, Mixup) or (isinstance(by, Chain) and _pairs(by.then))


def try_augmentation(by: Augmentation, x: Samples) -> None:
    """Try an augmentation on some samples ``[B, ...]``.

    Raises:
        ConfigError: they do not fit; or what is made of one depends on more than the sample and its key.
        CodeError: a user's function raised.
    """
    if isinstance(by, Mixup):
        by.check(x)
        return
    if isinstance(by, Chain) and _pairs(by.then):
        try_augmentation(by.first, x)
        try_augmentation(by.then, x)
        return
    place, n = f"local.augment {_name(by)}", count(x)
    given, x, drawn = x, mapped(Tensor.clone, x), generator_states()
    with explained(place):
        keys = split(torch.zeros((), dtype=torch.int64), torch.arange(n)).to(flat(x)[0].device)
        made, again, last = by(x, keys), by(x, keys), by(mapped(itemgetter(slice(n - 1, n)), x), keys[n - 1 :])
    if generator_states() != drawn:
        raise ConfigError(
            f"{place} draws from the global generator of PyTorch or NumPy, which no seed of a run controls; expected"
            " fedsim.uniform_of(key, d), which gives d numbers in [0, 1) for every sample"
        )
    if not _alike(x, given):
        raise ConfigError(f"{place} writes into its inputs; expected new tensors: 0.5 * x instead of x.mul_(0.5)")
    if _form(made) != _form(x):
        raise ConfigError(
            f"{place} made {_described(made)} of {_described(x)}; expected the same shapes and types, a row for each"
        )
    if not _alike(made, again):
        raise ConfigError(f"{place} gives one thing, then another for equal inputs and keys; expected a function")
    if not _alike(mapped(itemgetter(slice(n - 1, n)), made), last, 1e-3):
        raise ConfigError(
            f"{place} mixes samples: what it makes of one depends on those beside it, which are other clients' in"
            " blocks; expected a function of each row and its key alone"
        )


def _uniform(key: Tensor, n: int) -> Tensor:
    """Uniform float64 draws ``[B, n]`` from [0, 1) with 53 random bits, of keys ``[B]``."""
    words = split(key.unsqueeze(1), torch.arange(n, device=key.device))
    return ((words >> 11) & (2**53 - 1)).double() * 2.0**-53


def _size(by: object, x: Samples) -> tuple[int, int]:
    """Height and width of images.

    Raises:
        ConfigError: the inputs are no images.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        raise ConfigError(
            f"local.augment {_name(by)} takes images of floats [C, H, W], and a sample is {_described(x)}; leave it out"
            " or reshape the inputs, or name a function of inputs [B, ...] and keys [B] for them"
        )
    return x.shape[2], x.shape[3]


def _name(by: object) -> str:
    return getattr(by, "__qualname__", type(by).__name__)


def _form(x: Samples) -> object:
    return mapped(lambda t: (t.shape, t.dtype), x) if _is_samples(x) else None


def _described(x: Samples) -> str:
    if not _is_samples(x):
        return f"a {type(x).__name__}"
    kinds = ", ".join(str(t.dtype).removeprefix("torch.") for t in flat(x))
    return f"{written(x)} {kinds}"


def _is_samples(x: object) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, tuple | dict) and all(isinstance(t, Tensor) for t in flat(x)))


def _alike(a: Samples, b: Samples, tolerance: float = 0.0) -> bool:
    return all(alike(p, q, tolerance) for p, q in zip(flat(a), flat(b), strict=True))
