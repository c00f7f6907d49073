"""Local optimisers: the step of one client, from a point, a direction and a step size, as a pure function.

In the names of ``torch.optim``, whose optimisers of the same names these equal, with g the direction and eta its step:

    SGD        y <- y - eta g
    HeavyBall  m <- momentum m + g;   y <- y - eta m
    Nesterov   m <- momentum m + g;   y <- y - eta (g + momentum m)
    Adam       m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2;   t <- t + 1
               y <- y - eta (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    AdamW      y <- (1 - eta weight_decay) y, then Adam's step
    RMSprop    v <- alpha v + (1 - alpha) g^2;   y <- y - eta g / (sqrt(v) + eps)
    Adagrad    v <- v + g^2;   y <- y - eta g / (sqrt(v) + eps)

Adam: Kingma, Ba, ICLR 2015 (arXiv 1412.6980). AdamW: Loshchilov, Hutter, ICLR 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedsim.checks import in_range, non_negative, one_of, positive
from fedsim.types import Optimizer, Slots
from fedsim.values import Vector

State: TypeAlias = Literal["reset", "keep"]
"""Life of the slots: "reset" begins anew in each round, "keep" goes on where the client's last round ended."""


@dataclass(frozen=True)
class _Stateful:
    """Common part of the optimisers with slots: one vector, unless they say otherwise."""

    state: State = field(default="reset", kw_only=True)

    def __post_init__(self) -> None:
        one_of(self, "state", ("reset", "keep"))

    def slots(self, x: Vector) -> Slots:
        return (torch.zeros_like(x),)


@dataclass(frozen=True)
class SGD:
    """Plain gradient steps, without a state."""

    def slots(self, x: Vector) -> Slots:
        return ()

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        return y - eta * g, ()


@dataclass(frozen=True)
class HeavyBall(_Stateful):
    """Polyak's momentum, as torch.optim.SGD with momentum.

    Args:
        momentum: coefficient of the buffer, from 0 to below 1.
        state: "reset" begins with an empty buffer in each round, "keep" with the client's last one.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        in_range(self, "momentum", 0, 1)
        super().__post_init__()

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        m = self.momentum * slots[0] + g
        return y - eta * m, (m,)


@dataclass(frozen=True)
class Nesterov(HeavyBall):
    """Nesterov's momentum, as torch.optim.SGD with nesterov.

    Args:
        momentum: coefficient of the buffer, from 0 to below 1.
        state: "reset" begins with an empty buffer in each round, "keep" with the client's last one.
    """

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        m = self.momentum * slots[0] + g
        return y - eta * (g + self.momentum * m), (m,)


@dataclass(frozen=True)
class Adam(_Stateful):
    """Steps divided by the root of the mean square of the directions, with momentum.

    Args:
        beta1: decay of the mean of the directions, from 0 to below 1.
        beta2: decay of the mean of their squares, from 0 to below 1.
        eps: what is added to the root.
        state: "reset" begins without means in each round, "keep" with the client's last ones.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        in_range(self, "beta1", 0, 1)
        in_range(self, "beta2", 0, 1)
        positive(self, "eps")
        super().__post_init__()

    def slots(self, x: Vector) -> Slots:
        return torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(())

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        m, v, t = slots
        t = t + 1.0
        root = unbiased(self.beta2, t).sqrt()
        m = torch.lerp(m, g, 1 - self.beta1)
        v = torch.addcmul(self.beta2 * v, g, g, value=1 - self.beta2)
        return y - root * eta / unbiased(self.beta1, t) * (m / (v.sqrt() + root * self.eps)), (m, v, t)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: the point itself shrinks, whatever the gradients' scale.

    Args:
        beta1: decay of the mean of the directions, from 0 to below 1.
        beta2: decay of the mean of their squares, from 0 to below 1.
        eps: what is added to the root.
        weight_decay: decay of the point, times eta, in each step; independent of local.weight_decay.
        state: "reset" begins without means in each round, "keep" with the client's last ones.
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        non_negative(self, "weight_decay")
        super().__post_init__()

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        return super().step(y * (1 - eta * self.weight_decay), g, eta, slots)


@dataclass(frozen=True)
class RMSprop(_Stateful):
    """Steps divided by the root of the mean square of the directions.

    Args:
        alpha: decay of the mean of the squares, from 0 to below 1.
        eps: what is added to the root.
        state: "reset" begins without a mean in each round, "keep" with the client's last one.
    """

    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        in_range(self, "alpha", 0, 1)
        positive(self, "eps")
        super().__post_init__()

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        v = torch.addcmul(self.alpha * slots[0], g, g, value=1 - self.alpha)
        return y - eta * (g / (v.sqrt() + self.eps)), (v,)


@dataclass(frozen=True)
class Adagrad(_Stateful):
    """Steps divided by the root of the sum of the squares of all directions.

    Args:
        eps: what is added to the root.
        state: "reset" begins without a sum in each round, "keep" with the client's last one.
    """

    eps: float = 1e-10

    def __post_init__(self) -> None:
        positive(self, "eps")
        super().__post_init__()

    def step(self, y: Vector, g: Vector, eta: Tensor | float, slots: Slots) -> tuple[Vector, Slots]:
        v = torch.addcmul(slots[0], g, g)
        return y - eta * (g / (v.sqrt() + self.eps)), (v,)


def unbiased(beta: float, t: Tensor) -> Tensor:
    """``1 - beta^t``, without the cancellation that single precision would suffer from."""
    return -torch.expm1(t * (math.log(beta) if beta else -math.inf))


def keeps(optimizer: Optimizer) -> bool:
    """True if the optimiser's slots stay at the client from round to round."""
    return getattr(optimizer, "state", "reset") == "keep"


OPTIMIZERS = (SGD, HeavyBall, Nesterov, Adam, AdamW, RMSprop, Adagrad)
