"""Bookkeeping of EF21-P's public copies, which clients hold: the state of each copy, and the messages it missed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from fedsim.backends.flower.protocol.versions import COPY
from fedsim.backends.flower.server.memories import Handle, Memories
from fedsim.messages.wire import Form


class Step(NamedTuple):
    """A message to all copies, and the resulting state: SHA-256 of this and all earlier messages."""

    state: str
    data: bytes


class Copies:
    """States of the copies, by client function and client.

    A client that missed messages receives those, or the whole copy if that is shorter or they are no longer retained,
    as after a server restart.
    """

    def __init__(self, memories: Memories) -> None:
        self._memories = memories
        self._steps: dict[str, list[Step]] = {}
        self._held: dict[tuple[str, int], tuple[str, list[Handle]]] = {}

    def publish(self, name: str, data: bytes, whole: int) -> None:
        """Append a message to the copies of a client function; drop those followed by ``whole`` bytes or more."""
        steps = self._steps.setdefault(name, [])
        before = steps[-1].state if steps else ""
        steps.append(Step(hashlib.sha256(before.encode() + data).hexdigest(), data))
        while sum(len(step.data) for step in steps[1:]) >= whole:
            del steps[0]

    def snapshot(self) -> dict[str, list[Step]]:
        """Snapshot of the messages so far, for ``restore``."""
        return {name: list(steps) for name, steps in self._steps.items()}

    def restore(self, snapshot: Mapping[str, list[Step]]) -> None:
        """Roll back for a retry of the round."""
        self._steps = {name: list(steps) for name, steps in snapshot.items()}

    def update(self, name: str, client: int, whole: bytes) -> tuple[list[str], dict[str, bytes]]:
        """Update to send to a client's copy: its versions, and the messages since; or none, and the whole copy."""
        state, handles = self._held.get((name, client), ("", []))
        steps = self._steps[name]
        known = next((k for k, step in enumerate(steps) if step.state == state), len(steps))
        news = [step.data for step in steps[known + 1 :]]
        if not news or sum(map(len, news)) >= len(whole):
            return [], {"down": whole}
        return [handle.name for handle in handles], {f"news-{k}": data for k, data in enumerate(news)}

    def forget(self, name: str, client: int) -> None:
        """Send the whole copy next time, as the client may have lost its own."""
        self._held.pop((name, client), None)

    def arrived(self, name: str, client: int, write: str, forms: list[Form]) -> None:
        """Record that a client has the last state, in versions written during that call."""
        handles = [self._memories.handle(client, f"{write}.{COPY + k}", form) for k, form in enumerate(forms)]
        self._held[name, client] = self._steps[name][-1].state, handles
