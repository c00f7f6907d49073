"""Refusals of what client code returns, and of models that cannot be evaluated, in the words of their authors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.machine import out_of_memory
from fedsim.engine.model import Model
from fedsim.errors import (
    BlockError,
    ClientError,
    ConfigError,
    DivergenceError,
    FedsimError,
    ModelError,
    in_one_line,
    lines_of,
    suggest,
    title,
)
from fedsim.tree import described, flat, form, leaves
from fedsim.types import Batch, Kept, Messages, Sent


def refuse_no_tensors(fn: Callable[..., Any], result: Any) -> None:
    """Raise ConfigError unless ``result``, returned by a client function or a step, is a tree of tensors."""
    try:
        leaves(result)
    except TypeError:
        part = _no_tensor(result)
        given, within = type(part).__name__, "" if part is result else ", among others"
        fix = {
            "NoneType": "is a `return` missing?",
            "list": "return a tuple",
            "Kept": "the rows of clients.each and clients.apply are read as memories: clients.each(fn, down, s.m)",
        }.get(given, f"a number is torch.tensor({part!r:.20})" if isinstance(part, int | float) else "")
        raise ConfigError(
            f"{title(fn)} returned {'None' if part is None else f'a {given}'}{within}; expected a tensor, or a tuple of"
            f" tensors{fix and f': {fix}'}"
        ) from None


def _no_tensor(tree: Any) -> Any:
    """Some part of a tree that is no tensor."""
    if type(tree) is tuple or hasattr(tree, "_fields"):
        return next(part for part in map(_no_tensor, tree) if part is not _FINE)
    try:
        leaves(tree)
    except TypeError:
        return tree
    return _FINE


_FINE = object()


def refuse_other_form(step: Callable[..., Any], before: Any, after: Any) -> None:
    """Raise ConfigError if a step of ``local.fold`` returns a carry of other shapes or types than it got."""
    refuse_no_tensors(step, after)
    if form(before) != form(after):
        raise ConfigError(
            f"{title(step)} got the carry {described(before)} and returned {described(after)}; expected the same shapes"
            " and types, as local.fold hands the result to the next step"
        )


def model_error(model: Model, x: Any, batch: Any, error: Exception) -> Exception:
    """Build the error for a gradient of one client at ``x`` on ``batch`` that raised ``error``."""
    if not isinstance(x, Tensor) or form(x) != [((model.d,), model.dtype)]:
        return no_vector(model, x)
    if not isinstance(batch, Batch):
        return ConfigError(f"local.grad got a {type(batch).__name__} as its batch; expected that of the step")
    if isinstance(error, FedsimError) or out_of_memory(error):
        return error
    inputs, targets = (described(tuple(flat(samples))) for samples in (batch.x, batch.y))
    given = f"inputs {inputs} and targets {targets}"
    return ModelError(
        f"the model {type(model.module).__name__}, or its loss, raised {in_one_line(error)}, given {given}"
        f"\n{lines_of(error)}"
    )


def no_vector(model: Model, x: Any) -> ConfigError:
    """Build the error for a gradient at something that is no vector of the model's."""
    given = described(x) if isinstance(x, Tensor) else f"a {type(x).__name__}"
    expected = torch.empty(model.d, dtype=model.dtype, device="meta")
    return ConfigError(f"local.grad got {given} as the model; expected a vector {described(expected)}")


def client_error(node: int, fn: Callable[..., Any], round: int, error: Exception) -> ClientError:
    """Build the error for a client function that raised ``error`` at one client."""
    return ClientError([node], title(fn), round, in_one_line(error), lines_of(error))


def other_form(fn: Callable[..., Any], node: int, result: Any, other: int, of_other: Any) -> ConfigError:
    """Build the error for results of two clients that differ in shape or type."""
    return ConfigError(
        f"{title(fn)} returned {described(result)} at client {node} and {described(of_other)} at client {other};"
        " expected the same shapes and types at all clients"
    )


def block_error(fn: Callable[..., Any], round: int, error: Exception) -> BlockError:
    """Build the error for ``error``, which a client function raises for a block of clients but for none alone."""
    cause, place = error, f"{title(fn)} in round {round}"
    if isinstance(error, ModelError) and isinstance(error.__cause__, Exception):
        cause, place = error.__cause__, str(error).partition(", or its loss")[0]
    fixes = [fix for fix, words in REWRITES.items() if any(word in str(cause) for word in words)]
    fix = "; or ".join([*fixes, "use --backend loop, or auto, which runs one client at a time where it has to"])
    why = in_one_line(cause).partition(" We don't support")[0]
    return BlockError(f"{place} cannot run for a block of clients: {why}\n{lines_of(cause)}\n{fix}")


REWRITES = {
    "write torch.where instead of `if` on a tensor, and no .item()": ("control flow", ".item()"),
    "make new tensors instead of writing into one": ("in-place", "inplace"),
    "draw fedsim.seeds.uniform_of(local.key(), d) instead of torch.rand": ("randomness",),
}
"""What to write instead, with words of the errors of PyTorch that it is for."""


def no_such_word(place: str, name: str, interface: type) -> AttributeError:
    """Build the error for an attribute that an interface of algorithms lacks."""
    known = [word for word in dir(interface) if not word.startswith("_")]
    return AttributeError(f"{place}.{name} does not exist; {suggest(name, known)}")


def check_arguments(call: str, fn: Any, down: Any, mine: Sequence[Any]) -> None:
    """Raise ConfigError unless ``down`` is a message, and ``mine`` are memories."""
    if not callable(fn):
        raise ConfigError(f"{call}: expected a client function first, got a {type(fn).__name__}")
    for value in mine:
        if not isinstance(value, Kept):
            raise ConfigError(
                f"{call} got a {type(value).__name__} as a memory; expected a Kept, which clients.keep creates. A value"
                " of the server goes down: clients.each(fn, (x, c), s.m)"
            )
    if isinstance(down, Kept | Sent):
        memory = isinstance(down, Kept)
        fix = "memories follow it: clients.each(fn, s.x, s.m)" if memory else "clients.mean(y) makes one"
        raise ConfigError(
            f"{call} got a {type(down).__name__} as the message to every client; expected a value of the server, or"
            f" None; {fix}"
        )
    try:
        leaves((down,) if down is not None else ())
    except TypeError as error:
        raise ConfigError(f"{call} cannot send this: {error}; a number is torch.tensor(0.0)") from None


def check_sent(sent: Any, verb: str) -> None:
    """Raise ConfigError unless ``sent`` are messages of a cohort."""
    if isinstance(sent, Sent):
        return
    fix = ""
    if isinstance(sent, tuple) and sent and isinstance(sent[0], Sent):
        fix = ": clients.each returned new memories too, as in y, m = clients.each(fn, s.x, s.m)"
    raise ConfigError(f"clients.{verb} got a {type(sent).__name__}; expected the messages of clients.each{fix}")


def check_finite(ids: np.ndarray, messages: Messages[Any], fn: Callable[..., Any], round: int) -> None:
    """Raise DivergenceError if a message of ``fn`` of the clients ``ids`` holds NaN or infinity."""
    bad = ids[~messages.finite()]
    if len(bad):
        raise DivergenceError(
            f"{title(fn)} in round {round}: client {', '.join(map(str, bad[:5]))}{' ...' if len(bad) > 5 else ''}"
            f" sent NaN or infinity ({len(bad)} of {len(ids)} clients). Lower the learning rate, set"
            " local.clip_norm, or check these clients' data."
        )
