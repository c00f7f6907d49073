"""Checks of settings, used in ``__post_init__`` so that a bad value fails before anything runs."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from topologies.errors import TopologyError

MAX_EDGES = 5_000_000
"""What a networkx graph holds in about 1 GB."""


def is_whole(value: object) -> bool:
    """Test for an integer of Python or NumPy that is not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(settings: Any, name: str, least: int) -> None:
    """The named field is a whole number, ``least`` or more."""
    value = getattr(settings, name)
    if not is_whole(value) or value < least:
        raise TopologyError(f"{type(settings).__name__}.{name} is {value!r}; expected a whole number, {least} or more")


def probability(settings: Any, name: str) -> None:
    """The named field is a number in [0, 1]."""
    value = getattr(settings, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise TopologyError(f"{type(settings).__name__}.{name} is {value!r}; expected a number in [0, 1]")


def check_n(n: int) -> None:
    """There is at least one node."""
    if not is_whole(n) or n < 1:
        raise TopologyError(f"n is {n!r}; expected a whole number of nodes, 1 or more")


def check_edges(settings: Any, n: int, edges: float) -> None:
    """The graph fits in memory."""
    if edges > MAX_EDGES:
        raise TopologyError(
            f"{settings!r} with n={n} has about {edges:,.0f} edges; a graph of up to {MAX_EDGES:,} can be held: "
            "take fewer nodes or a sparser graph (a complete graph with equal weights is what a server does)"
        )
