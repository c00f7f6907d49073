"""Handles of client memories at the server; the values stay with the clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from fedsim.backends.flower.protocol.forms import dtype_of, fingerprint
from fedsim.backends.flower.protocol.versions import MESSAGE
from fedsim.errors import DeployError
from fedsim.messages import wire
from fedsim.messages.wire import Form, form_of
from fedsim.values import Far, Packed

SAVED = "fedsim memory "


class Handle(Far):
    """A tensor on a client's disk, kept there while the server holds this handle."""

    def __init__(self, memories: Memories, client: int, name: str, form: Form) -> None:
        self._memories, self.client, self.name = memories, client, name
        self.shape, self.dtype, self.device = torch.Size(form[1]), dtype_of(form[0]), memories.device

    def fetch(self) -> Tensor:
        """See ``Far``."""
        return self._memories.fetch(self)

    def saved(self) -> Tensor:
        """See ``Far``: a checkpoint holds the name, not the value."""
        text = SAVED + json.dumps([self.client, self.name, form_of(self)])
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def __repr__(self) -> str:
        return f"Handle(client {self.client}, {self.name}, {list(self.shape)})"


class Memories:
    """A ``fedsim.engine.memory.Memory`` with values at the clients.

    Args:
        initial: the initial model ``[d]``, and its parts if it is divided, which clients derive themselves.
        fetch: fetches the value of a handle.
    """

    def __init__(self, initial: Sequence[Tensor], fetch: Callable[[Handle], Tensor]) -> None:
        self.device, self.fetch = initial[0].device, fetch
        self.used = False                                  # True once a client has written a memory
        self._initial = initial
        self._alive: WeakSet[Handle] = WeakSet()
        self._has: dict[int, set[str]] = {}                # client: shared initial memories sent to it

    def put(self, value: Tensor | Far) -> Tensor | Far:
        """See ``Memory``: values are at their clients already; names in a checkpoint become handles."""
        if isinstance(value, Far):
            return value
        text = bytes(value.cpu().numpy()).decode(errors="replace") if value.dtype == torch.uint8 else ""
        if not text.startswith(SAVED):
            raise DeployError("the checkpoint holds values of memories, not names: it was not written by a deployment")
        return self.handle(*json.loads(text.removeprefix(SAVED)))

    def put_rows(self, stack: Tensor) -> list[Tensor | Far]:
        """See ``Memory``."""
        return list(map(self.put, stack))

    def handle(self, client: int, name: str, form: Form) -> Handle:
        """Create a handle."""
        self.used = True
        handle = Handle(self, client, name, form)
        self._alive.add(handle)
        return handle

    def handles(self, client: int, write: str, form: Form) -> Any:
        """Create handles for a memory of the given form that a client wrote in one call."""
        numbers = count()

        def tree(form: Form) -> Any:
            if form[0] == "tuple":
                return tuple(tree(branch) for branch in form[1:])
            return self.handle(client, f"{write}.{next(numbers)}", form)

        return tree(form)

    def message(self, client: int, write: str, size: int) -> Handle:
        """Create a handle for a message that a client sent and retained."""
        return self.handle(client, f"{write}.{MESSAGE}", ["uint8", [size]])

    def beside(self, handle: Handle) -> list[Handle]:
        """Handles of all clients written by the same call, including this one."""
        return [other for other in self._alive if other.name == handle.name]

    def alive(self, client: int) -> list[str]:
        """Names of the versions that a client must keep."""
        return sorted({handle.name for handle in self._alive if handle.client == client})

    def spec(self, tree: Any, client: int, shipped: dict[str, bytes]) -> Any:
        """Specification of a memory in a call; initial values unknown to the client are added to ``shipped``, once."""
        if isinstance(tree, Packed):
            raise DeployError("a client keeps a compressed vector; keep the vector itself: packed.unpack()")
        if isinstance(tree, tuple):
            return [self.spec(branch, client, shipped) for branch in tree]
        if isinstance(tree, Handle):
            return {"version": tree.name}
        if not bool(tree.any()):
            return {"zeros": form_of(tree)}
        name = fingerprint(tree)
        if any(tree.shape == part.shape and torch.equal(tree, part) for part in self._initial):
            return {"initial": name}
        if name not in self._has.get(client, ()):
            shipped[name] = wire.encode(tree)
        return {"shared": name}

    def arrived(self, client: int, shipped: set[str]) -> None:
        """Record the shared initial memories that a client has received."""
        self._has.setdefault(client, set()).update(shipped)
