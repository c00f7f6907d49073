"""Host seconds that an algorithm takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Measures host seconds, but for the pauses in which a run evaluates, writes checkpoints or calls the user's code.

    Args:
        seconds: what it shows at first.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time that the block takes."""
        begun = time.perf_counter()
        yield
        self._start += time.perf_counter() - begun
