"""The local step, made in one place for all methods and backends: ``local.descend``."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.engine.local_work import LocalWork
from fedsim.engine.optimizers import keeps
from fedsim.engine.sharing import Sharing
from fedsim.errors import ConfigError
from fedsim.types import Slots
from fedsim.values import Vector


class Descent:
    """The local steps of one client or, below ``torch.vmap``, of the clients of a block.

    Args:
        work: local work of the round.
        learned: mask of the parameters in the model's vector, bool ``[d]``; None if there are no statistics besides.
        sharing: which coordinates the method sees; None for all.

    Attributes:
        slots: state of the optimiser, of one client.
        own: its own coordinates ``[p]``, and how many steps train them alone, if the model is divided.
        used: whether any step was made.
        factor: of the step size, in this step of a fold, 0-dim; None without a schedule.
    """

    def __init__(self, work: LocalWork, learned: Tensor | None = None, sharing: Sharing | None = None) -> None:
        self._work, self._learned, self._zero = work, learned, torch.zeros((), device=getattr(learned, "device", None))
        self._statistics: Vector | None = None             # with the new statistics, of the step's first gradient
        self._sharing = sharing
        self.slots: Slots = ()
        self.own: Slots = ()
        self._of_own: Vector | None = None                 # the last gradient in this step, at the own coordinates
        self.used = False
        self.factor: Tensor | None = None
        self._made: bool | None = None                     # in this step of a fold; None outside of one

    @property
    def carry(self) -> Slots:
        """What rides through the steps of a fold, behind the method's own carry."""
        return (*self.slots, *self.own)

    @carry.setter
    def carry(self, tensors: Slots) -> None:
        end = len(tensors) - len(self.own)
        self.slots, self.own = tensors[:end], tensors[end:]

    @property
    def kept(self) -> Slots:
        """What stays at the client until its next call."""
        own = () if self._sharing is None else (self._own,)
        return (*self.slots, *own) if keeps(self._work.optimizer) else own

    @kept.setter
    def kept(self, tensors: Slots) -> None:
        end = len(tensors) - (self._sharing is not None)
        self.slots, self.own = tensors[:end], tensors[end:]

    @property
    def _own(self) -> Vector:
        assert self._sharing is not None
        return self.own[0] if self.own else self._sharing.own

    def start(self, like: Vector, steps: Tensor) -> None:
        """Start a ``local.fold`` of one client, of so many steps on vectors like ``like [d]``; slots go on from fold to
        fold.
        """
        self.slots = self.slots or self._work.optimizer.slots(like)
        if self._sharing is not None:
            self.own = (self._own, *self._sharing.start(steps))

    def whole(self, x: Vector) -> Vector:
        """The model's vector ``[d]`` at a point of the method's."""
        return x if self._sharing is None else self._sharing.whole(x, self._own)

    def begin(self) -> None:
        """Begin a step of ``local.fold``."""
        self._made, self._statistics, self._of_own = False, None, None

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
        if self._sharing is None:
            return self._descended(y, direction, eta, prox)
        if self._of_own is None:
            raise ConfigError(
                "local.descend was called in a step without local.grad(y, batch), along whose gradient a client's own"
                " layers descend; leave out share, or use a method that takes one"
            )
        before = self.whole(y)
        new = self._descended(before, self._sharing.whole(direction, self._of_own), eta, prox)
        new, turn = self._sharing.moved(before, new, self.own[1:])
        y, own = self._sharing.split(new)
        self.own = own, *turn
        return y

    def _descended(self, y: Vector, direction: Vector, eta: Tensor | float, prox: float) -> Vector:
        direction = self._work.regularise_step(self._of_parameters(direction), self._of_parameters(y), prox)
        new = self._step(y, direction, eta if self.factor is None else eta * self.factor)
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
        g = self._work.regularise(self._of_parameters(g), self._of_parameters(x))
        if self._sharing is None:
            return g
        g, of_own = self._sharing.split(g)
        self._of_own = of_own if of_minibatch else self._of_own
        return g

    def _of_parameters(self, x: Vector) -> Vector:
        return x if self._learned is None else torch.where(self._learned, x, self._zero)
