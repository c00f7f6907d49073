"""Which version of a value the nodes hold that they compute from messages (``fedsim.messages.rebuilt``)."""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.backends.flower.server.memories import Handle


class Known:
    """Versions by client.

    Attributes:
        begun: True if this server began the run: clients hold the initial model at first. One that goes on with a run
            does not know what they hold.
    """

    def __init__(self) -> None:
        self.begun = False
        self._held: dict[int, Handle] = {}
        self._lost: set[int] = set()

    def version(self, client: int) -> str | None:
        """Name of a client's version, empty for the initial model; None if it is to be sent the value."""
        if client in self._lost:
            return None
        handle = self._held.get(client)
        return handle.name if handle is not None else "" if self.begun else None

    def arrived(self, client: int, handle: Handle) -> None:
        """Record that a client holds a new value."""
        self._held[client] = handle
        self._lost.discard(client)

    def forget(self, client: int) -> None:
        """Send the value next time, as the client may have lost its own."""
        self._lost.add(client)

    def snapshot(self) -> dict[int, Handle]:
        """What clients hold now, for ``restore``."""
        return dict(self._held)

    def restore(self, snapshot: Mapping[int, Handle]) -> None:
        """Go back, for a retry of the round: messages begin with what clients held before it."""
        self._held = dict(snapshot)
