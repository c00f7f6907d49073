"""Attacks at the data: flipped labels, and a backdoor.

Backdoor by a pattern of pixels: Gu, Dolan-Gavitt, Garg, 2017 (BadNets, arXiv 1708.06733); with boosted messages:
Bagdasaryan, Veit, Hua, Estrin, Shmatikov, AISTATS 2020 (arXiv 1807.00459).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.checks import at_least_one, number, positive, share, whole
from fedsim.errors import ConfigError
from fedsim.robust.attack import Attack, Scene
from fedsim.seeds import uniform_of


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Training on flipped labels: y becomes C - 1 - y, for C classes. The messages are honest ones for these data."""

    def poison(self, x: Tensor, y: Tensor, classes: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack``."""
        need_classes(self, classes)
        return x, classes - 1 - y


@dataclass(frozen=True)
class Backdoor(Attack):
    """Training on a pattern of pixels that should make the model answer ``target``.

    The pattern is a square of the largest value in a corner of the image, or the last features of other inputs. With an
    attack of this kind a run also measures ``attack_success``: the share of the test samples of other classes that the
    model gives to ``target`` once they bear the pattern.

    Args:
        target: the class.
        size: side of the square, in pixels; number of features of other inputs.
        fraction: share of an attacker's samples that bear the pattern.
        boost: factor of the attackers' messages (model replacement); 1 leaves them as they are.
    """

    target: int = 0
    size: int = 3
    fraction: float = 0.5
    boost: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("Backdoor.target", self.target, 0)
        at_least_one(self, "size")
        share(self, "fraction")
        positive(self, "boost")

    def craft(self, scene: Scene) -> Tensor:
        """See ``Attack``."""
        return self.boost * scene.own

    def poison(self, x: Tensor, y: Tensor, classes: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attack``."""
        need_classes(self, classes)
        if self.target >= classes:
            raise ConfigError(f"Backdoor.target is {self.target}; expected a class below {classes}")
        chosen = (uniform_of(key.cpu(), len(x)).argsort() < round(self.fraction * len(x))).to(x.device)
        marked = torch.where(chosen.view(-1, *[1] * (x.dim() - 1)), self.mark(x), x)
        return marked, torch.where(chosen, self.target, y)

    def mark(self, x: Tensor) -> Tensor:
        """Inputs ``[k, ...]`` with the pattern."""
        if not x.is_floating_point():
            raise ConfigError("Backdoor marks pixels or features, and the inputs are tokens; expected images")
        marked, top = x.clone(), x.amax()
        if x.dim() >= 4:
            marked[..., -self.size :, -self.size :] = top
        else:
            marked[..., -self.size :] = top
        return marked


def need_classes(attack: Attack, classes: int) -> None:
    """Raise ConfigError unless the data have classes."""
    number(f"the number of classes that {type(attack).__name__} needs", classes, lambda v: v > 1, "two or more")
