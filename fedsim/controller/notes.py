"""What a user is told on stderr beside results; what runs of one command have in common, once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_told: ContextVar[set[str] | None] = ContextVar("_told", default=None)


def note(text: str) -> None:
    """Print a message."""
    print(f"fedsim: {text}", file=sys.stderr)


def remark(text: str, say: Callable[[str], None] = note) -> None:
    """Print a message about an experiment, not about what happens in a run of it; see `telling_once`."""
    told = _told.get()
    if told is None or text not in told:
        say(f"note: {text}")
    if told is not None:
        told.add(text)


@contextmanager
def telling_once() -> Iterator[None]:
    """Within the block, and those inside it, `remark` prints each text once: the runs of a grid have most in common."""
    token = _told.set(set() if (told := _told.get()) is None else told)
    try:
        yield
    finally:
        _told.reset(token)
