"""Conversion of an algorithm's state to named tensors and memories of clients, and back, for checkpoints.

A state is a NamedTuple of trees, of ``Kept``, of states, and of mappings from names to any of these; the contents of a
mapping need not be known in advance, as long as its trees are tuples of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.record.blocks import PutRows, copies, read
from fedsim.record.checkpoint import Loaded
from fedsim.tree import build, described, leaves, zeros_like
from fedsim.types import Kept
from fedsim.values import Far


class Parts(NamedTuple):
    """The parts of a state by name: its tensors, as functions that copy them to the host one by one, and the clients'
    memories.
    """

    tensors: dict[str, Callable[[], Tensor]]
    memories: dict[str, Mapping[int, Any]]


def flatten(state: Any) -> Parts:
    """Split a state into named tensors and memories."""
    parts = Parts({}, {})
    for field, value in zip(state._fields, state, strict=True):
        _name(parts, field, value)
    return parts


def restore(template: Any, loaded: Loaded, put_rows: PutRows = copies) -> Any:
    """Rebuild a state from a checkpoint of the result of ``flatten``.

    Args:
        template: a state of the same algorithm, e.g. its initial state.
        loaded: the checkpoint.
        put_rows: places the rows of a stack of clients' memories.
    """
    x = template.x
    device = leaves(x.default if isinstance(x, Kept) else x)[0].device
    return _Reader(loaded, put_rows, device).state(template, "")


def check(name: str, state: Any, before: Any = None, server: bool | None = None) -> None:
    """Check that an algorithm returned a state that a checkpoint can hold and restore.

    Args:
        name: name of the method that returned it.
        state: the returned value.
        before: the previous state, if any.
        server: True if the model must be at a server, False if at the nodes; None omits this check.

    Raises:
        ConfigError: it is not such a state; names the field.
    """
    if not hasattr(state, "x") or not hasattr(state, "_fields"):
        raise ConfigError(f"{name} returned a {type(state).__name__}; expected a NamedTuple with the model as x")
    if server is not None and server is isinstance(state.x, Kept):
        home = (
            "Kept, a model at each node; a method without a server sets `server = False` in its class"
            if server
            else "one vector, but its class sets `server = False`; expected a model at each node, as of clients.keep(x)"
        )
        raise ConfigError(f"{name} returned a state whose x is {home}")
    for field, value in zip(state._fields, state, strict=True):
        _check(f"{name} returned a state whose {field}", value, getattr(before, field, value))


def _check(place: str, value: Any, old: Any) -> None:
    if (new := _layout(place, value)) != (made := _layout(place, old)):
        raise ConfigError(
            f"{place} holds {new}, and held {made} before; expected the same shapes and types in every round: let init"
            " return zeros of those"
        )
    if isinstance(value, Kept) and value.rows and (lost := value.lacks(old)):
        raise ConfigError(
            f"{place} has lost the memories of {len(lost)} clients, such as {min(lost)}; clients outside the cohort"
            " keep theirs with s.m | new"
        )
    if _is_state(value):
        for part, of_old in zip(value, old, strict=True):
            _check(place, part, of_old)


def _layout(place: str, value: Any) -> str:
    if isinstance(value, Kept):
        first = next(iter(value.rows), None)               # all have the same layout
        some = value.default if first is None else value.rows[first]
        one, other = _layout(place, value.default), _layout(place, some)
        return f"{one} at each client" if one == other else f"{one} by default and {other} at each client"
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not isinstance(part, Kept | tuple) or _is_state(part) or "." in key:
                raise ConfigError(
                    f"{place} holds a {type(part).__name__} named {key}; expected tuples of tensors, or Kept, by names"
                    " without a dot"
                )
            _layout(place, part)
        return "a mapping"                                 # its names may change
    if _is_state(value):
        return ", ".join(value._fields)
    try:
        return described(value)
    except TypeError as error:
        raise ConfigError(f"{place} cannot be saved: {error}; a number is torch.tensor(0.0)") from error


def _is_state(value: Any) -> bool:
    return hasattr(value, "_fields") and any(isinstance(part, Kept | Mapping) or _is_state(part) for part in value)


def _name(parts: Parts, prefix: str, value: Any) -> None:
    if isinstance(value, Kept):
        parts.memories[prefix] = value.rows
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _name(parts, f"{prefix}.{key}", part)
            if isinstance(part, Kept):
                parts.tensors[f"{prefix}.{key}.n"] = torch.tensor(part.n).clone
    elif _is_state(value):
        for field, part in zip(value._fields, value, strict=True):
            _name(parts, f"{prefix}.{field}", part)
    else:
        for k, leaf in enumerate(leaves(value)):
            parts.tensors[f"{prefix}.{k}"] = leaf.saved if isinstance(leaf, Far) else leaf.cpu   # called on writing


class _Reader:
    """Reads values by the names that `flatten` gave them."""

    def __init__(self, loaded: Loaded, put_rows: PutRows, device: torch.device) -> None:
        self.tensors, self.memories, self.put_rows, self.device = loaded.tensors, loaded.memories, put_rows, device

    def state(self, like: Any, prefix: str) -> Any:
        return type(like)(*(self.value(part, prefix + field) for field, part in zip(like._fields, like, strict=True)))

    def value(self, like: Any, name: str) -> Any:
        if isinstance(like, Kept):
            return Kept(like.n, like.default, read(self.memories[name], like.default, self.device, self.put_rows))
        if isinstance(like, Mapping):
            return self.mapping(name)
        return self.state(like, f"{name}.") if _is_state(like) else self.tree(like, name)

    def tree(self, like: Any, name: str) -> Any:
        return build(like, iter([self.tensors[f"{name}.{k}"].to(self.device) for k in range(len(leaves(like)))]))

    def mapping(self, name: str) -> dict[str, Any]:
        """Contents of the mapping ``name``, with trees as tuples of tensors."""
        names = [*self.tensors, *self.memories]
        keys = dict.fromkeys(key[len(name) + 1 :].split(".")[0] for key in names if key.startswith(f"{name}."))
        return {key: self._unknown(f"{name}.{key}") for key in keys}

    def _unknown(self, name: str) -> Any:
        if name not in self.memories:
            return self._tensors(name)
        rows = read(self.memories[name], None, self.device, self.put_rows)
        return Kept(int(self.tensors[f"{name}.n"]), zeros_like(next(iter(rows.values()), ())), rows)

    def _tensors(self, name: str) -> tuple[Tensor, ...]:
        count = sum(key.startswith(f"{name}.") for key in self.tensors)
        return tuple(self.tensors[f"{name}.{k}"].to(self.device) for k in range(count))
