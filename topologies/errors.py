"""The error of this package, which depends on no other package of the project."""

from __future__ import annotations


class TopologyError(ValueError):
    """A graph, a mixing matrix or a schedule cannot be what was asked; the message says why, and what can."""
