"""Protocol of attacks: who is Byzantine, and what these clients send when they know all honest messages of a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.checks import number
from fedsim.errors import ConfigError, many
from fedsim.seeds import uniform_of
from fedsim.values import Vector


class Scene(NamedTuple):
    """What attackers know in a round, for the vectors of a message joined to one of length D.

    Attributes:
        honest: ``[h, D]`` messages of the honest clients of the cohort, h >= 1.
        own: ``[b, D]`` what the attackers of the cohort would send if they were honest.
        key: random key, int64 0-dim.
        aggregate: result ``[D]`` of the server, given the attackers' messages ``[b, D]``; of its rule, or the mean.
    """

    honest: Tensor
    own: Tensor
    key: Tensor
    aggregate: Callable[[Tensor], Vector]

    @property
    def n(self) -> int:
        """Clients in the cohort."""
        return len(self.honest) + len(self.own)

    def alike(self, v: Vector) -> Tensor:
        """The same vector ``[D]`` from every attacker, ``[b, D]``."""
        return v.expand(len(self.own), -1)

    def uniform(self) -> Tensor:
        """Uniform draws from [0, 1), ``[b, D]``, other ones for every attacker."""
        keys = self.key.cpu() + torch.arange(len(self.own))
        return torch.stack([uniform_of(key, self.own.shape[1]) for key in keys]).to(self.own)


@dataclass(frozen=True)
class Attack:
    """Base of attacks: a frozen dataclass. By itself it changes nothing.

    Args:
        share: share of the clients that are Byzantine, drawn with the seed, the same for a whole run.
        ids: numbers of the Byzantine clients, instead of a share.
    """

    share: float = 0.2
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        number(f"{type(self).__name__}.share", self.share, lambda v: 0 < v < 1, "a share between 0 and 1")
        if self.ids is not None:
            object.__setattr__(self, "ids", tuple(sorted(self.ids)))
            whole = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in self.ids)
            if not self.ids or not whole or len(set(self.ids)) < len(self.ids):
                raise ConfigError(f"{type(self).__name__}.ids is {self.ids}; expected distinct clients, such as (0, 3)")

    def attackers(self, seed: int, n: int) -> np.ndarray:
        """Numbers of the Byzantine clients among ``n``, ascending.

        Raises:
            ConfigError: there are none, or no honest ones, or a number does not exist.
        """
        name = type(self).__name__
        if self.ids is not None:
            if self.ids[-1] >= n or len(self.ids) >= n:
                raise ConfigError(f"{name}.ids is {self.ids} of {many(n, 'client')}; expected some of 0 to {n - 1}")
            return np.array(self.ids)
        count = round(self.share * n)
        if not 0 < count < n:
            raise ConfigError(
                f"{name}.share is {self.share:g} of {many(n, 'client')}, which is {count}; expected a share from"
                f" {1 / n:g} on, with at least one honest client"
            )
        return np.sort(seeds.uniform(seed, "byzantine", 0, np.arange(n)).argsort(kind="stable")[:count])

    def craft(self, scene: Scene) -> Tensor:
        """Messages of the attackers, ``[b, D]``."""
        return scene.own

    def lost(self, scene: Scene) -> np.ndarray:
        """Mask ``[b]`` of the attackers whose messages do not arrive."""
        return np.zeros(len(scene.own), bool)

    def remark(self, n: int, f: int) -> str:
        """Say why ``f`` attackers in a cohort of ``n`` do no harm; "" if they may."""
        return ""

    def poison(self, x: Tensor, y: Tensor, classes: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of an attacker, inputs ``[k, ...]`` and targets, as it changes them before training."""
        return x, y
