"""The local step, made in one place for all methods and backends: ``local.descend``."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.engine.local_work import LocalWork
from fedsim.errors import ConfigError
from fedsim.types import Slots
from fedsim.values import Vector


class Descent:
    """The local steps of one client or, below ``torch.vmap``, of the clients of a block.

    Args:
        work: local work of the round.
        learned: mask of the parameters in the model's vector, bool ``[d]``; None if there are no statistics besides.

    Attributes:
        slots: state of the optimiser, of one client.
        used: whether any step was made.
    """

    def __init__(self, work: LocalWork, learned: Tensor | None = None) -> None:
        self._work, self._learned, self._zero = work, learned, torch.zeros((), device=getattr(learned, "device", None))
        self._statistics: Vector | None = None             # with the new statistics, of the step's first gradient
        self.slots: Slots = ()
        self.used = False
        self._made: bool | None = None                     # in this step of a fold; None outside of one

    def start(self, like: Vector) -> None:
        """Start a ``local.fold`` of one client, on vectors like ``like [d]``; slots go on from fold to fold."""
        self.slots = self.slots or self._work.optimizer.slots(like)

    def begin(self) -> None:
        """Begin a step of ``local.fold``."""
        self._made, self._statistics = False, None

    def end(self) -> None:
        """End the last step of ``local.fold``."""
        self._made = None

    def __call__(self, y: Vector, direction: Vector, eta: Tensor | float, *, prox: float = 0.0) -> Vector:
        """See ``fedsim.types.Local.descend``."""
        if self._made is None:
            raise ConfigError(
                "local.descend was called outside of local.fold; it makes the step of one minibatch, inside the"
                " function given to local.fold"
            )
        if self._made:
            raise ConfigError(
                "local.descend was called twice in one step of local.fold; it makes the step of one minibatch: add the"
                " directions and call it once, and write other moves as tensor algebra"
            )
        self._made = self.used = True
        direction = self._work.regularise_step(self._of_parameters(direction), self._of_parameters(y), prox)
        new = self._step(y, direction, eta)
        if self._learned is None:
            return new
        return torch.where(self._learned, new, y if self._statistics is None else self._statistics)

    def _step(self, y: Vector, g: Vector, eta: Tensor | float) -> Vector:
        new, self.slots = self._work.optimizer.step(y, g, eta, self.slots)
        return new

    def gradient(self, g: Vector, x: Vector, *, of_minibatch: bool) -> Vector:
        """Result of ``local.grad``, from the model's gradient at ``x``: regularised, and 0 at the statistics, which the
        step takes over if this is its first gradient of a minibatch.
        """
        if of_minibatch and self._statistics is None:
            self._statistics = g
        return self._work.regularise(self._of_parameters(g), self._of_parameters(x))

    def _of_parameters(self, x: Vector) -> Vector:
        return x if self._learned is None else torch.where(self._learned, x, self._zero)
