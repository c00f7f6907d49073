"""Errors as a node tells the server of them: in fixed sentences, since an error may quote the node's data or files. The
errors themselves are in the node's own log.
"""

from __future__ import annotations

import sys
import traceback

from fedsim.backends.flower.protocol.calls import Call, RefusedError
from fedsim.errors import CodeError, DataError, ModelError

LONGEST = 2000
"""Characters of the longest text."""
SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (DataError, "its data cannot be read"),
    (ModelError, "the model does not take its data"),
    (CodeError, "the client function failed"),
    (MemoryError, "it is out of memory"),
    (OSError, "it cannot read or write a file"),
)


def sentence(error: BaseException) -> str:
    """Fixed sentence about an error; the text of a RefusedError, which is meant for the server."""
    if isinstance(error, RefusedError):
        return str(error)
    what = next((text for kind, text in SENTENCES if isinstance(error, kind)), "it could not do what the call asks for")
    return f"{what}; the node's own log says why"


def log(error: BaseException) -> None:
    """Write an error to the node's log."""
    if isinstance(error, RefusedError):
        print(f"refused: {error}{error.detail and f' [{error.detail}]'}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def refusal(error: Exception) -> Call:
    """Log an error, and make the response about it."""
    log(error)
    return Call("refused", {"error": sentence(error)[:LONGEST]})
