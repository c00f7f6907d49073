"""Blocks of clients where client code allows it, one client after the other where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.engine.blocks import Blocks
from fedsim.engine.captured import Graphs
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.kernels import REFERENCE, Kernels
from fedsim.engine.loop import Loop
from fedsim.errors import BlockError, title
from fedsim.types import Messages


@dataclass(frozen=True)
class BlocksOrLoop:
    """Backend that runs a client function in blocks until that raises an error that the loop does not have, and in the
    loop from then on.

    Args:
        size: clients per block.
        fallen: client functions that run in the loop, with the reasons; added to. A checkpoint holds them, so that a
            resumed run falls back in the same round.
        fell: called with a message when one is added.
        threads: see ``fedsim.engine.threads``.
        kernels: see ``fedsim.engine.kernels``.
        graphs: see ``fedsim.engine.blocks.Blocks``.
    """

    size: int
    fallen: dict[str, str]
    fell: Callable[[str], None]
    threads: int = 0
    kernels: Kernels = REFERENCE
    graphs: Graphs | None = None

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, Mapping[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``."""
        name, charged, ids = title(call.fn), meter.ledger.gradient_evaluations, call.ids
        if name not in self.fallen:
            before = charged[ids]
            try:
                return Blocks(self.size, self.threads, self.kernels, self.graphs).run(federation, meter, call)
            except BlockError as error:
                charged[ids] = before
                self.fallen[name] = error.reason
                self.fell(f"{error.reason}; it runs for one client at a time from here on")
        return Loop(self.threads, self.kernels).run(federation, meter, call)
