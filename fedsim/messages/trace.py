"""The trace of a round for a clock: what was sent, by whom, and the gradients in between, in order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np


class Computed(NamedTuple):
    """A client function on the nodes ``ids [c]``.

    Attributes:
        ids: the nodes.
        down: ``[c]`` bytes that each receives from the server before it begins; 0 where it begins by itself.
        evaluations: ``[c]`` gradient evaluations of each.
    """

    ids: np.ndarray
    down: np.ndarray
    evaluations: np.ndarray


class Uploaded(NamedTuple):
    """Messages of ``size [c]`` bytes from the nodes ``ids [c]`` to the server, which waits for all of them.

    Attributes:
        ids: the senders.
        size: bytes of each.
        behind: share of the nodes' next work that does not wait for the result.
    """

    ids: np.ndarray
    size: np.ndarray
    behind: float


class Exchanged(NamedTuple):
    """Gossip over directed edges, ``steps`` times.

    Attributes:
        to: ``[E]`` receivers.
        by: ``[E]`` senders.
        size: ``[E]`` bytes over each edge in one step.
        steps: exchanges, each of the results of the one before.
        behind: share of the nodes' next work that does not wait for the result.
    """

    to: np.ndarray
    by: np.ndarray
    size: np.ndarray
    steps: int
    behind: float


class Closed(NamedTuple):
    """The end of an exchange with a server that does not wait for all.

    Attributes:
        ids: the clients whose messages do not count.
        stop: ``[c]`` simulated seconds at which each of these stops.
        until: simulated seconds at which the server goes on.
        skipped: whether the server makes no step, as too few messages have arrived.
    """

    ids: np.ndarray
    stop: np.ndarray
    until: float
    skipped: bool


Phase: TypeAlias = Computed | Uploaded | Exchanged | Closed
