"""What the server has seen of its nodes: for people who watch, and for how long to wait for an answer."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fedsim.backends.flower.protocol.policy import Policy
from fedsim.record.nodes import NodeStatus, write_nodes

UNKNOWN_SECONDS = 600.0
"""Time to wait for an answer to a kind of call that no node has answered yet."""
LEAST_SECONDS = 60.0
"""Shortest time to wait otherwise: Flower notices within this that a node is gone."""
SLACK = 10.0
"""Time to wait for an answer, in times of the slowest so far."""
WORK = ("each", "mix")
"""Verbs of the calls of a round."""


class Roster:
    """Status of all nodes, by client.

    Attributes:
        folder: run directory in which it is written; None before there is one.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._nodes: dict[int, NodeStatus] = {}
        self._rounds: dict[int, int] = {}                  # the last one that a client answered
        self._slowest: dict[str, float] = {}               # by verb

    def limit(self, policy: Policy, verb: str) -> float:
        """Seconds to wait for answers to calls with a verb."""
        if not isinstance(policy.timeout, str):
            return policy.timeout
        slowest = self._slowest.get(verb)
        return UNKNOWN_SECONDS if slowest is None else max(LEAST_SECONDS, SLACK * slowest)

    def joined(self, client: int, samples: int) -> None:
        """Note that a node is connected."""
        node = self._of(client)
        node.connected, node.samples, node.last_seen = True, samples, time.time()

    def left(self, client: int) -> None:
        """Note that a node is not connected any more."""
        self._of(client).connected = False

    def answered(self, client: int, round: int, verb: str, took: float, work: float, sizes: tuple[int, int]) -> None:
        """Note a valid answer.

        Args:
            client: its number.
            round: of the call.
            verb: of the call.
            took: seconds from the call to the answer.
            work: seconds of them at the node.
            sizes: bytes of the messages to the node and from it.
        """
        node = self._of(client)
        node.last_seen, node.seconds = time.time(), node.seconds + work
        node.bytes_down, node.bytes_up = node.bytes_down + sizes[0], node.bytes_up + sizes[1]
        if verb in WORK and self._rounds.get(client) != round:
            self._rounds[client] = round
            node.rounds += 1
        self._slowest[verb] = max(took, self._slowest.get(verb, 0.0))

    def failed(self, client: int, why: str) -> None:
        """Note a call without a valid answer."""
        node = self._of(client)
        node.errors, node.error = node.errors + 1, why

    def save(self) -> None:
        """Write the status; a full disk does not end the run."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                write_nodes(self.folder, [self._nodes[client] for client in sorted(self._nodes)])

    def _of(self, client: int) -> NodeStatus:
        return self._nodes.setdefault(client, NodeStatus(client))
