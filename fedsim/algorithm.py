"""What an algorithm is: an initial state and a round."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from fedsim.clients import Clients
from fedsim.values import Vector

StateT = TypeVar("StateT")


class Algorithm(Protocol[StateT]):
    """A frozen dataclass of hyper-parameters. Its state is a NamedTuple of tensors and ``Kept``, whose ``x`` is the
    model: a vector at the server or, where the class says ``server = False``, one at each node.
    """

    def init(self, x: Vector, clients: Clients) -> StateT:
        """State before round 1, from the initial model ``[d]``; ``clients`` is everybody."""

    def round(self, s: StateT, clients: Clients) -> StateT:
        """State after one round with the cohort ``clients``; must not change ``s``."""


def has_server(algorithm: Any) -> bool:
    """Whether the model of an algorithm's state lives at a server, and not at each node."""
    return bool(getattr(algorithm, "server", True))
