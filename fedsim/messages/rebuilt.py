"""What nodes are sent in place of a value that they compute from it and from what they know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedsim.errors import ConfigError
from fedsim.messages.wire import nbytes
from fedsim.values import Vector


class Rebuilt:
    """A value of the server that each node computes from a message of its own and from what it remembers.

    Increments of low rank to a matrix that nodes hold are an example. A simulation hands the value to the client
    function as it is, and charges the messages. In a deployment, a node is sent the message, and keeps the value for
    the next one; where it may not have the one before, as after a restart of the server, it is sent the value.

    Args:
        value: what the client function receives; a vector ``[d]``.
        messages: of each node of the cohort, in the order of its ids.
        by: client function of each of them, ``by(local, known, message)``, which gives the value; ``known`` is the last
            value that the node was sent by a method, at first the initial model ``[d]``. It may be `functools.partial`
            with numbers and texts.
    """

    __slots__ = ("by", "messages", "value")

    def __init__(self, value: Vector, messages: Sequence[Any], by: Sequence[Callable[..., Vector]]) -> None:
        self.value, self.messages, self.by = value, messages, by

    def sizes(self, count: int, call: str) -> np.ndarray:
        """Size of each message in bytes, int64 ``[c]``.

        Raises:
            ConfigError: there is not one for each of the ``count`` nodes.
        """
        for what, given in (("messages", self.messages), ("functions", self.by)):
            if len(given) != count:
                raise ConfigError(f"{call}: Rebuilt has {len(given)} {what} for {count} nodes; expected one each")
        known: dict[int, int] = {}                         # most nodes are sent the same
        for message in self.messages:
            if id(message) not in known:
                known[id(message)] = nbytes(message)
        return np.array([known[id(message)] for message in self.messages], np.int64)
