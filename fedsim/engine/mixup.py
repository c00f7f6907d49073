"""Mixup (Zhang et al., ICLR 2018): convex combinations of the samples of a minibatch and of their losses.

It pairs samples, so that it acts on a whole minibatch of one client, padding left out, and not row by row as other
augmentations do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import positive
from fedsim.errors import ConfigError
from fedsim.seeds import split
from fedsim.tree import Samples, flat, mapped
from fedsim.types import Batch

LEVELS = 2**12
"""Quantiles of the Beta distribution among which the share of a minibatch is drawn, the same on every device."""


class Mixed(NamedTuple):
    """Targets of mixed samples: the loss is ``share`` times that of ``first`` plus the rest times that of ``second``.

    Attributes:
        first: targets ``[B, ...]`` of the samples.
        second: of their partners.
        share: ``[B]``.
    """

    first: Samples
    second: Samples
    share: Tensor


@dataclass(frozen=True)
class Mixup:
    """Mixup (Zhang et al. 2018): each sample of a minibatch with another one, and the losses of both targets alike.

    Every sample x of a minibatch becomes ``lam x + (1 - lam) x'`` for a partner x' of a random permutation, and its
    loss ``lam l(f, y) + (1 - lam) l(f, y')``, with one ``lam`` from Beta(alpha, alpha) for a minibatch. In a chain it
    comes last.

    Args:
        alpha: of the Beta distribution; small values mix little, 1 uniformly.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        positive(self, "alpha")

    def __call__(self, x: Samples, key: Tensor) -> Samples:
        raise ConfigError(
            "Mixup acts on minibatches with their targets; expected it as local.augment, or at the end of a Chain"
        )

    def check(self, x: Samples) -> None:
        """Raise ConfigError unless inputs can be mixed."""
        if other := [str(t.dtype).removeprefix("torch.") for t in flat(x) if not t.is_floating_point()]:
            raise ConfigError(f"local.augment Mixup mixes inputs: {other[0]} has no numbers between; expected floats")

    def mixed(self, batch: Batch, keys: Tensor) -> Batch:
        """The batch ``[..., B]`` with mixed inputs and `Mixed` targets, by keys ``[..., B]`` of its rows."""
        numbers = split(keys, torch.zeros((), dtype=torch.int64, device=keys.device))
        if batch.weight is not None:
            numbers = numbers.masked_fill(batch.weight == 0, torch.iinfo(torch.int64).max)   # padding stays last
        partner = numbers.argsort(stable=True, dim=-1)
        level = (split(keys[..., :1], torch.ones((), dtype=torch.int64, device=keys.device)) >> 20) & (LEVELS - 1)
        share = _quantiles(self.alpha).to(keys.device)[level].expand(keys.shape)

        def other(t: Tensor) -> Tensor:
            index = partner.view(*partner.shape, *[1] * (t.dim() - partner.dim()))
            return t.gather(partner.dim() - 1, index.expand(t.shape))

        def mix(t: Tensor) -> Tensor:
            lam = share.to(t.dtype).view(*share.shape, *[1] * (t.dim() - share.dim()))
            return lam * t + (1 - lam) * other(t)

        targets = Mixed(batch.y, mapped(other, batch.y), share)
        return batch._replace(x=mapped(mix, batch.x), y=targets)


@lru_cache(maxsize=8)
def _quantiles(alpha: float) -> Tensor:
    """``LEVELS`` quantiles of Beta(alpha, alpha), equally likely."""
    from scipy.special import betaincinv  # slow to import

    return torch.from_numpy(betaincinv(alpha, alpha, (np.arange(LEVELS) + 0.5) / LEVELS))


def loss_of_mixed(loss: Any, outputs: Any, y: Samples) -> Tensor:
    """Losses of outputs, of mixed targets too."""
    if not isinstance(y, Mixed):
        losses: Tensor = loss(outputs, y)
        return losses
    first, second = loss(outputs, y.first), loss(outputs, y.second)
    lam = y.share.to(first.dtype)
    mixed: Tensor = lam * first + (1 - lam) * second
    return mixed
