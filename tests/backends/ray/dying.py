"""Algorithms whose client code fails or waits in one place, for tests; a module of its own, as workers import it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from algorithms import Scaffold
from fedsim import Local

Kind = Literal["kill", "raise", "full"]


@dataclass(frozen=True)
class Dying(Scaffold):
    """SCAFFOLD with a client that fails in one round.

    Args:
        kind: what happens.
        once: a file that is made when it happens, after which it does not happen again; "" for always.
        driver: number of the test's own process, which is never killed.
        round: when.
        nodes: whose code.
    """

    kind: Kind = "raise"
    once: str = ""
    driver: int = 0
    at_round: int = 3
    nodes: tuple[int, ...] = (7,)

    def client(self, local: Local, *arguments: Any) -> Any:
        """That of SCAFFOLD, or a failure."""
        if self._due(local) and os.getpid() != self.driver:
            if self.once:
                Path(self.once).touch()
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "full":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise ValueError("somebody's bug")
        return super().client(local, *arguments)

    def _due(self, local: Any) -> bool:
        """Test for the client and the round; the loop's ``Local`` has one client, that of a block several."""
        round = round_of(local)
        nodes = [local._node] if hasattr(local, "_node") else local.ids.tolist()
        over = bool(self.once) and Path(self.once).exists()
        return round == self.at_round and not over and not set(self.nodes).isdisjoint(nodes)


class Branching(Scaffold):
    """Asks what a tensor is, to which a block of clients has no one answer."""

    def client(self, local: Local, *arguments: Any) -> Any:
        """That of SCAFFOLD, or half the message."""
        message, memory = super().client(local, *arguments)
        half: Any = tuple(part / 2 for part in message)
        return (message, memory) if message[0].sum() > 0 else (half, memory)


def round_of(local: Any) -> int:
    """The round of a ``Local``, that of the loop or of a block."""
    return int(getattr(local, "_round", getattr(local, "round", 0)))


@dataclass(frozen=True)
class Waiting(Scaffold):
    """SCAFFOLD whose clients wait in some rounds, so that a test can strike in the middle of one.

    Args:
        folder: where a client that waits in round 3 makes the file ``3``, and goes on once there is ``3-go``.
        waits: in which rounds.
    """

    folder: str = ""
    waits: tuple[int, ...] = (2, 5)

    def client(self, local: Local, *arguments: Any) -> Any:
        """That of SCAFFOLD, later."""
        if (round := round_of(local)) in self.waits:
            here = Path(self.folder, str(round))
            here.touch()
            end = time.monotonic() + 1200
            while not here.with_name(f"{round}-go").exists():
                if time.monotonic() > end:
                    raise TimeoutError(f"nobody made {round}-go")
                time.sleep(0.02)
        return super().client(local, *arguments)
