"""Errors as a node tells the server of them: in fixed sentences, since an error may quote the node's data or files. The
errors themselves are in the node's own log.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping

from fedsim.backends.flower.protocol.calls import Call, RefusedError
from fedsim.errors import CodeError, DataError, ModelError, many

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


def in_words(call: Call, made: Call, seconds: Mapping[str, float], method: str) -> str:
    """What a node has done, in words of the experiment, whose algorithm is ``method``, for its own log."""
    took, up, values = f"{sum(seconds.values()):.2f} s", f"{made.nbytes():,} bytes", made.values
    round = f"round {call.values.get('round')}"
    match call.verb:
        case "hello":
            return f"ready, with {many(values['samples'], 'sample')}"
        case "each":
            gradients = f"{values['evaluations']:,} gradients in {took}"
            return f"{round}: {method}.{call.values['function']}, {gradients}; sends {up}"
        case "mix":
            return f"{round}: mixed with {many(len(call.data), 'neighbour')} in {took}"
        case "score":
            accuracy = "" if values["accuracy"] is None else f", accuracy {values['accuracy']:.3f}"
            samples = many(values["samples"], "sample")
            return f"measured the server's model on {samples}: loss {values['loss']:.4g}{accuracy}"
        case "value":
            return f"sent its own memories to be evaluated, {up}"
    return "the run has ended; its memories here are deleted"


def say(text: str) -> None:
    """Write a line to the node's own log."""
    print(f"fedsim {time.strftime('%H:%M:%S')}: {text}", file=sys.stderr, flush=True)


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
