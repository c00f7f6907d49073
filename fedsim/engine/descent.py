"""The local step, made in one place for all methods and backends: ``local.descend``."""

from __future__ import annotations

from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.values import Vector


class Descent:
    """The local steps of one client, or, below ``torch.vmap``, of a block of clients."""

    def __init__(self) -> None:
        self._made: bool | None = None                     # in this step of a fold; None outside of one

    def begin(self) -> None:
        """Begin a step of ``local.fold``."""
        self._made = False

    def end(self) -> None:
        """End the last step of ``local.fold``."""
        self._made = None

    def __call__(self, y: Vector, direction: Vector, eta: Tensor | float) -> Vector:
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
        self._made = True
        return y - eta * direction
