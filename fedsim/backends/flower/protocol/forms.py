"""Messages and memories by their forms (``fedsim.messages.wire.Form``), and client functions by their names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from fedsim.backends.flower.protocol.calls import RefusedError, parsed
from fedsim.engine.model import Model
from fedsim.errors import DeployError
from fedsim.feedback.compressed import Compressed
from fedsim.feedback.linked import Hearing, Offer, Upload
from fedsim.feedback.mechanisms import Gossip, Uplink
from fedsim.messages import wire
from fedsim.messages.wire import Form
from fedsim.tree import leaves, unpacked
from fedsim.types import Local
from fedsim.values import Compressor, Vector

UPLOAD, OFFER, HEARING = ", compressed", ", offered", ", unpacked"
"""Suffixes in the names of client functions with a compressed link: uplink, between nodes, or downlink only."""


def most(form: Form) -> int:
    """Largest size of an honest message of a form in bytes: twice that of its vectors uncompressed, and a little."""
    if form[0] == "tuple":
        return sum(map(most, form[1:]))
    name, length = (form[2], form[3]) if form[0] == "packed" else (form[0], math.prod(form[1]))
    return 2 * dtype_of(name).itemsize * length + 1024


def received(data: bytes, form: Form, what: str, compressors: Sequence[Compressor] = (), longest: int = 0) -> Any:
    """Decode a message of a given form.

    Raises:
        RefusedError: it is malformed, too large, of another form, or not finite.
    """
    try:
        largest = most(form)
    except (TypeError, LookupError):                       # a form is received too
        raise RefusedError(f"the form of {what} is {form!s:.80}; expected one such as ['float32', [650]]") from None
    if len(data) > largest:
        raise RefusedError(f"{what} has {len(data):,} bytes; refused as oversized above {largest:,}")
    try:
        tree = wire.decode(data, compressors, longest, form)
    except ValueError as error:
        raise RefusedError(f"{what} is malformed: {error}") from error
    check_finite(tree, what)
    return tree


def check_finite(tree: Any, what: str) -> None:
    """Raise RefusedError if a tensor holds NaN or infinity, or a compressed vector does when it is unpacked."""
    for leaf in [*leaves(tree), *leaves(unpacked(tree))]:
        # a sum is finite only if all numbers are, and needs no memory
        finite = not leaf.is_floating_point() or leaf.sum(dtype=torch.float64).isfinite() or leaf.isfinite().all()
        if not bool(finite):
            raise RefusedError(f"{what} holds NaN or infinity; lower the learning rate, or look at this client's data")


def dtype_of(name: object) -> torch.dtype:
    """Look up a dtype by name; raise RefusedError if it is unknown."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise RefusedError(f"{name!r:.40} is not a dtype; expected one such as float32")
    return found


def compressors_of(algorithm: object) -> list[Compressor]:
    """Compressors among an algorithm's settings, in the order of its fields, which is the same on both ends."""
    verbs = ("compress", "unpack", "encode", "decode")
    return [part for _, part in _parts(algorithm, "") if all(hasattr(part, verb) for verb in verbs)]


def _parts(owner: object, path: str) -> Iterator[tuple[str, Any]]:
    """Yield an algorithm and the dataclasses among its settings, with their paths."""
    if is_dataclass(owner) and not isinstance(owner, type):
        yield path, owner
        for field in fields(owner):
            yield from _parts(getattr(owner, field.name), f"{path}{field.name}.")


def name_of(algorithm: object, fn: Callable[..., Any]) -> str:
    """Name under which a node looks up a client function: ``client``, ``algorithm.client, compressed``, or
    ``client {"p": 0}`` for a partial function.

    Raises:
        DeployError: it is not a method of the algorithm or of one of its settings.
    """
    if isinstance(fn, Upload | Offer | Hearing):
        return name_of(algorithm, fn.fn) + {Upload: UPLOAD, Offer: OFFER, Hearing: HEARING}[type(fn)]
    if isinstance(fn, partial) and not fn.args and all(isinstance(v, int | float | str) for v in fn.keywords.values()):
        return f"{name_of(algorithm, fn.func)} {json.dumps(fn.keywords, sort_keys=True)}"
    if isinstance(fn, MethodType):
        for path, part in _parts(algorithm, ""):
            if part is fn.__self__:
                return path + fn.__name__
    raise DeployError(
        f"the client function {getattr(fn, '__qualname__', fn)!r:.80} is not a method of {type(algorithm).__name__};"
        " nodes look client functions up by name: make it one"
    )


def function_of(algorithm: object, name: object) -> Callable[..., Any]:
    """Look up a client function by name; inverse of `name_of`.

    Raises:
        RefusedError: no method of that name takes a ``Local`` as its first argument.
    """
    if isinstance(name, str) and isinstance(algorithm, Compressed):
        if name.endswith(UPLOAD):
            uplink = cast("Uplink | None", algorithm.uplink)
            return Upload(function_of(algorithm, name.removesuffix(UPLOAD)), uplink)
        if name.endswith(OFFER):
            return Offer(function_of(algorithm, name.removesuffix(OFFER)), cast("Gossip", algorithm.uplink))
        if name.endswith(HEARING):
            return Hearing(function_of(algorithm, name.removesuffix(HEARING)))
    head, brace, settings = str(name).partition(" {")
    if brace:
        values = parsed(f"{{{settings}", "settings of a client function")
        if not all(isinstance(value, int | float | str) for value in values.values()):
            raise RefusedError(f"a client function has the settings {values!r:.80}; expected numbers and texts")
        return partial(function_of(algorithm, head), **values)
    path, _, method = head.rpartition(".")
    owner = dict(_parts(algorithm, "")).get(f"{path}." if path else "")
    known = [key for key, value in vars(type(owner)).items() if _runs_at_client(value)]
    if method not in known:
        raise RefusedError(
            f"{type(algorithm).__name__} has no client function {name!r:.80}; it has {', '.join(known) or 'none'}"
        )
    found: Callable[..., Any] = getattr(owner, method)
    return found


def _runs_at_client(value: object) -> bool:
    if not isinstance(value, FunctionType) or value.__name__.startswith("_"):
        return False
    return next(iter(_hints(value).values()), None) is Local


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of a function's arguments, in order."""
    try:
        hints = get_type_hints(fn)
    except (NameError, TypeError):
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}


def arguments(fn: Callable[..., Any], *trees: Any) -> list[Any]:
    """Arguments of a client function after ``local``, plain tuples converted to the NamedTuples it expects."""
    if isinstance(fn, Upload | Offer | Hearing):           # an upload's last memory belongs to the link
        fn = fn.fn
    fn = fn.func if isinstance(fn, partial) else fn
    hints = [*_hints(fn).values()][1:]
    return [named(tree, hint) for tree, hint in zip(trees, [*hints, *[None] * len(trees)], strict=False)]


def named(tree: Any, hint: Any) -> Any:
    """Convert plain tuples to the NamedTuples of a type hint; leave what does not match unchanged."""
    if not isinstance(tree, tuple) or isinstance(tree, Tensor):
        return tree
    if get_origin(hint) is tuple and len(get_args(hint)) == len(tree):
        return tuple(named(branch, part) for branch, part in zip(tree, get_args(hint), strict=True))
    if isinstance(hint, type) and issubclass(hint, tuple) and len(getattr(hint, "_fields", ())) == len(tree):
        parts = get_type_hints(hint)
        return hint(*(named(branch, parts.get(key)) for branch, key in zip(tree, hint._fields, strict=True)))  # type: ignore[attr-defined]
    return tree


def fingerprint(value: Tensor) -> str:
    """Name of a shared initial value: ``shared-`` and the SHA-256 of its dtype, shape and bytes."""
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    head = json.dumps([str(value.dtype), list(value.shape)]).encode()
    return f"shared-{hashlib.sha256(head + raw).hexdigest()}"


def initial_of(model: Model, initial: Vector) -> list[Vector]:
    """Initial values that server and clients derive alike: of the model ``[d]``, and of its two parts if some layers
    stay with the clients.
    """
    return [initial] if model.sharing is None else [initial, *model.sharing.split(initial)]
