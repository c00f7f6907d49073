"""Graceful termination: SIGTERM, as schedulers send it, and SIGHUP, of a closed terminal, are handled like Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, and on SIGHUP unless that is ignored, as under nohup.

    Outside the main thread, do nothing.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    caught = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    try:
        previous = {number: signal.signal(number, interrupt) for number in caught}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
