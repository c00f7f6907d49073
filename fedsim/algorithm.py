"""What an algorithm is: an initial state and a round."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, get_origin, get_type_hints

from fedsim.clients import Clients
from fedsim.types import Kept
from fedsim.values import Vector

StateT = TypeVar("StateT")


class Algorithm(Protocol[StateT]):
    """A frozen dataclass of hyper-parameters. Its state is a NamedTuple of tensors and ``Kept``, whose ``x`` is the
    model.
    """

    def init(self, x: Vector, clients: Clients) -> StateT:
        """State before round 1, from the initial model ``[d]``; ``clients`` is everybody."""

    def round(self, s: StateT, clients: Clients) -> StateT:
        """State after one round with the cohort ``clients``; must not change ``s``."""


def has_server(algorithm: Any) -> bool | None:
    """Whether the model ``x`` of an algorithm's state lives at a server, by type hints; None where they do not say."""
    algorithm = getattr(algorithm, "algorithm", algorithm)   # of a compressed one
    try:
        state = get_type_hints(type(algorithm).init)["return"]
        return get_origin(get_type_hints(state)["x"]) is not Kept
    except (AttributeError, KeyError, NameError, TypeError):
        return None
