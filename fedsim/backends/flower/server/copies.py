"""The public copies of EF21-P, which clients hold themselves: in which state each is, and which messages it missed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from fedsim.backends.flower.protocol.forms import Form
from fedsim.backends.flower.protocol.versions import COPY
from fedsim.backends.flower.server.memories import Handle, Memories


class Step(NamedTuple):
    """A message to all copies, and the state that it leads to: SHA-256 of this and all earlier messages."""

    state: str
    data: bytes


class Copies:
    """States of the copies, by client function and client.

    A client that lacks messages gets these, or the whole copy where that is shorter or they are not known any more, as
    after a restart of the server.
    """

    def __init__(self, memories: Memories) -> None:
        self._memories = memories
        self._steps: dict[str, list[Step]] = {}
        self._held: dict[tuple[str, int], tuple[str, list[Handle]]] = {}

    def publish(self, name: str, data: bytes, whole: int) -> None:
        """A message to the copies of a client function; no client is sent ``whole`` bytes of messages or more."""
        steps = self._steps.setdefault(name, [])
        before = steps[-1].state if steps else ""
        steps.append(Step(hashlib.sha256(before.encode() + data).hexdigest(), data))
        while sum(len(step.data) for step in steps[1:]) >= whole:
            del steps[0]

    def snapshot(self) -> dict[str, list[Step]]:
        """For ``restore``: the messages so far."""
        return {name: list(steps) for name, steps in self._steps.items()}

    def restore(self, snapshot: Mapping[str, list[Step]]) -> None:
        """Go back, as a round is done again."""
        self._steps = {name: list(steps) for name, steps in snapshot.items()}

    def said(self, name: str, client: int, whole: bytes) -> tuple[list[str], dict[str, bytes]]:
        """What a call says of a client's copy: its versions, and the messages since; or none, and the whole copy."""
        state, handles = self._held.get((name, client), ("", []))
        steps = self._steps[name]
        known = next((k for k, step in enumerate(steps) if step.state == state), len(steps))
        news = [step.data for step in steps[known + 1 :]]
        if not news or sum(map(len, news)) >= len(whole):
            return [], {"down": whole}
        return [handle.name for handle in handles], {f"news-{k}": data for k, data in enumerate(news)}

    def forget(self, name: str, client: int) -> None:
        """A client may have lost its copy: it is sent the whole one next."""
        self._held.pop((name, client), None)

    def arrived(self, name: str, client: int, write: str, forms: list[Form]) -> None:
        """A client has the last state, in versions that it wrote during that call."""
        handles = [self._memories.handle(client, f"{write}.{COPY + k}", form) for k, form in enumerate(forms)]
        self._held[name, client] = self._steps[name][-1].state, handles
