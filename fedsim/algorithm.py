"""The algorithm protocol: an initial state and a round."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from fedsim.clients import Clients
from fedsim.values import Vector

StateT = TypeVar("StateT")


class Algorithm(Protocol[StateT]):
    """A frozen dataclass of hyper-parameters, with the methods ``init`` and ``round``.

    The state is a NamedTuple of tensors and ``Kept``. Its field ``x`` is the model: one vector at the server or, for a
    class with ``server = False``, one at each node. A class with ``personal = True`` has beside it
    a field ``personal``, ``Kept``, with each client's own model, which is measured too. A class with ``fixed_workers =
    True`` is meant for all clients in every round, and a run with smaller cohorts says so. An optional third method,
    ``finish(s, clients)``, returns the state after the last round for an algorithm that then has messages under way; it
    sends nothing.
    """

    def init(self, x: Vector, clients: Clients) -> StateT:
        """State before round 1, from the initial model ``[d]``; ``clients`` is the whole population."""

    def round(self, s: StateT, clients: Clients) -> StateT:
        """State after one round with the cohort ``clients``; must not modify ``s``."""


def has_server(algorithm: Any) -> bool:
    """Return whether an algorithm keeps its model at a server rather than at each node."""
    return bool(getattr(algorithm, "server", True))
