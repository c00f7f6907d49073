"""What nodes are sent in place of a value that they compute from it and from what they know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.errors import ConfigError
from fedsim.messages.wire import nbytes


class Rebuilt:
    """A value of the server that each node computes from a message of its own and from what it remembers.

    Increments of low rank to a matrix that nodes hold are an example. A simulation hands the value to the client
    function as it is, and charges the messages.

    Args:
        value: what the client function receives.
        messages: for each node of the cohort, in the order of its ids, a message of the form of what it is sent; only
            shapes and types are read, so tensors on the device "meta" are enough.
    """

    __slots__ = ("messages", "value")

    def __init__(self, value: Any, messages: Sequence[Any]) -> None:
        self.value, self.messages = value, messages

    def sizes(self, count: int, call: str) -> np.ndarray:
        """Size of each message in bytes, int64 ``[c]``.

        Raises:
            ConfigError: there is not one for each of the ``count`` nodes.
        """
        if len(self.messages) != count:
            raise ConfigError(f"{call}: Rebuilt has {len(self.messages)} messages for {count} nodes; expected one each")
        known: dict[int, int] = {}                         # most nodes are sent the same
        for message in self.messages:
            if id(message) not in known:
                known[id(message)] = nbytes(message)
        return np.array([known[id(message)] for message in self.messages], np.int64)
