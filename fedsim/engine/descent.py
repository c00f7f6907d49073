"""The local step, made in one place for all methods and backends: ``local.descend``."""

from __future__ import annotations

from torch import Tensor

from fedsim.engine.local_work import LocalWork
from fedsim.errors import ConfigError
from fedsim.types import Slots
from fedsim.values import Vector


class Descent:
    """The local steps of one client or, below ``torch.vmap``, of the clients of a block.

    Attributes:
        slots: state of the optimiser, of one client.
        used: whether any step was made.
    """

    def __init__(self, work: LocalWork) -> None:
        self._work = work
        self.slots: Slots = ()
        self.used = False
        self._made: bool | None = None                     # in this step of a fold; None outside of one

    def start(self, like: Vector) -> None:
        """Start a ``local.fold`` of one client, on vectors like ``like [d]``; slots go on from fold to fold."""
        self.slots = self.slots or self._work.optimizer.slots(like)

    def begin(self) -> None:
        """Begin a step of ``local.fold``."""
        self._made = False

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
        direction = self._work.regularise_step(direction, y, prox)
        y, self.slots = self._work.optimizer.step(y, direction, eta, self.slots)
        return y
