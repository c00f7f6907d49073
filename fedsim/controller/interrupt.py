"""Graceful termination: SIGTERM, which schedulers send, and SIGHUP, when a terminal is closed, are handled like Ctrl-C.

Further signals do not disturb what the first one has begun, such as writing a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

ENDING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that ask a process to end."""

PATIENCE = 5.0
"""Seconds after an interruption for which others are ignored, while checkpoints are written and processes ended."""


class _Interrupts:
    """Handler of the signals. Handlers can be nested: a run within a sweep has its own.

    Attributes:
        last: time of the last one that was raised.
        depth: number of functions that handle them.
    """

    def __init__(self) -> None:
        self.last, self.depth = -math.inf, 0

    def __call__(self, *_: object) -> None:
        if (now := time.monotonic()) >= self.last + PATIENCE:
            self.last = now
            raise KeyboardInterrupt


_interrupts = _Interrupts()


def catch(*numbers: int) -> dict[int, Any]:
    """Raise KeyboardInterrupt on these signals from now on; return the previous handlers.

    Ignored signals stay ignored, such as SIGHUP under nohup, and SIGINT keeps a handler of the user's. Outside the main
    thread this does nothing.
    """
    caught = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    if signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        caught = [number for number in caught if number != signal.SIGINT]
    try:
        return {number: signal.signal(number, _interrupts) for number in caught}
    except ValueError:  # not the main thread
        return {}


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, SIGTERM and SIGHUP within the block; see `catch`."""
    if not _interrupts.depth:                              # what came before has been dealt with
        _interrupts.last = -math.inf
    _interrupts.depth += 1
    previous = catch(*ENDING)
    try:
        yield
    finally:
        _interrupts.depth -= 1
        for number, handler in previous.items():
            signal.signal(number, handler)
