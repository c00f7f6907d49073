"""Graceful termination: SIGTERM, as schedulers send it, and SIGHUP, of a closed terminal, are handled like Ctrl-C, and
what the first of them has begun is not disturbed by more of them.
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
    """The interruptions of this process, one of which can begin within another's handling.

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
    """Raise KeyboardInterrupt on these signals from now on; return what was done on them before.

    What is ignored stays so, such as SIGHUP under nohup, and SIGINT with a handler of its own. Outside the main thread,
    do nothing.
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
    """Raise KeyboardInterrupt on SIGINT, SIGTERM and SIGHUP meanwhile, see `catch`."""
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
