"""An algorithm's state as named tensors and back, for checkpoints.

A state is a NamedTuple of trees, of ``Kept``, of states, and of mappings from names to any of these; what a mapping
holds need not be known beforehand, as long as its trees are tuples of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.tree import build, leaves, tree_map, zeros_like
from fedsim.types import Kept
from fedsim.values import Far

Put = Callable[[Tensor], Any]


def flatten(state: Any) -> dict[str, Callable[[], Tensor]]:
    """Every tensor of a state by a name, as functions so that large memories are copied to the host one by one."""
    named: dict[str, Callable[[], Tensor]] = {}
    for field, value in zip(state._fields, state, strict=True):
        _name(named, field, value)
    return named


def restore(template: Any, tensors: Mapping[str, Tensor], put: Put = lambda row: row) -> Any:
    """The state that ``flatten`` named.

    Args:
        template: a state of the same algorithm, e.g. its first.
        tensors: as they were named; read one by one.
        put: where a node's memory goes once it is read.
    """
    x = template.x
    device = leaves(x.default if isinstance(x, Kept) else x)[0].device
    return _Reader(tensors, put, device).state(template, "")


def check(name: str, state: Any, before: Any = None, server: bool | None = None) -> None:
    """What an algorithm returned is a state that a checkpoint can hold, and read back by the layout of another one.

    Args:
        name: of the method that returned it.
        state: what it returned.
        before: the state that it was made from, if any.
        server: whether the model should be at a server; not checked where it is None.

    Raises:
        ConfigError: it is not; names the field.
    """
    if not hasattr(state, "x") or not hasattr(state, "_fields"):
        raise ConfigError(f"{name} returned a {type(state).__name__}; expected a NamedTuple with the model as x")
    if server is not None and server is isinstance(state.x, Kept):
        home = (
            "Kept, a model at each node; a method without a server says `server = False` in its class"
            if server
            else "one vector, but its class says `server = False`; expected a model at each node, as of clients.keep(x)"
        )
        raise ConfigError(f"{name} returned a state whose x is {home}")
    for field, value in zip(state._fields, state, strict=True):
        _check(f"{name} returned a state whose {field}", value, getattr(before, field, value))
    if isinstance(state.x, Tensor) and before is not None:
        new, old = ((list(x.shape), x.dtype) for x in (state.x, before.x))
        if new != old:
            raise ConfigError(f"{name} returned a state whose x is {new[0]} of {new[1]}; expected {old[0]} of {old[1]}")


def _check(place: str, value: Any, old: Any) -> None:
    if (new := _layout(place, value)) != (made := _layout(place, old)):
        raise ConfigError(f"{place} is made of {new}, and before of {made}; let init begin with zeros in each place")
    if isinstance(value, Kept) and value.rows and (lost := old.rows.keys() - value.rows.keys()):
        raise ConfigError(
            f"{place} has lost the memories of {len(lost)} clients, such as {min(lost)}; those who took no part keep"
            " theirs with s.m | new"
        )
    if _is_state(value):
        for part, of_old in zip(value, old, strict=True):
            _check(place, part, of_old)


def _layout(place: str, value: Any) -> str:
    if isinstance(value, Kept):
        some = next(iter(value.rows.values()), value.default)    # all were made in one way
        return f"{_layout(place, value.default)} by default and {_layout(place, some)} of each client"
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not isinstance(part, Kept | tuple) or _is_state(part) or "." in key:
                raise ConfigError(
                    f"{place} holds a {type(part).__name__} named {key}; expected tuples of tensors, or Kept, by names"
                    " without a dot"
                )
            _layout(place, part)
        return "a mapping"                                 # whose names come and go
    if _is_state(value):
        return ", ".join(value._fields)
    try:
        return f"{len(leaves(value))} tensors"
    except TypeError as error:
        raise ConfigError(f"{place} cannot be saved: {error}; a number is torch.tensor(0.0)") from error


def _is_state(value: Any) -> bool:
    return hasattr(value, "_fields") and any(isinstance(part, Kept | Mapping) or _is_state(part) for part in value)


def _name(named: dict[str, Callable[[], Tensor]], prefix: str, value: Any) -> None:
    if isinstance(value, Kept):
        ids = torch.tensor(sorted(value.rows), dtype=torch.int64)
        named[f"{prefix}.ids"] = ids.clone
        for node in ids.tolist():
            _name(named, f"{prefix}.{node}", value.rows[node])
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _name(named, f"{prefix}.{key}", part)
            if isinstance(part, Kept):
                named[f"{prefix}.{key}.n"] = torch.tensor(part.n).clone
    elif _is_state(value):
        for field, part in zip(value._fields, value, strict=True):
            _name(named, f"{prefix}.{field}", part)
    else:
        for k, leaf in enumerate(leaves(value)):
            named[f"{prefix}.{k}"] = leaf.saved if isinstance(leaf, Far) else leaf.cpu   # called when it is written


class _Reader:
    """Reads values back by the names that `flatten` gave them."""

    def __init__(self, tensors: Mapping[str, Tensor], put: Put, device: torch.device) -> None:
        self.tensors, self.put, self.device = tensors, put, device

    def state(self, like: Any, prefix: str) -> Any:
        return type(like)(*(self.value(part, prefix + field) for field, part in zip(like._fields, like, strict=True)))

    def value(self, like: Any, name: str) -> Any:
        if isinstance(like, Kept):
            return self.kept(like.n, like.default, name)
        if isinstance(like, Mapping):
            return self.mapping(name)
        return self.state(like, f"{name}.") if _is_state(like) else self.tree(like, name)

    def kept(self, n: int, default: Any, name: str) -> Kept[Any]:
        ids = self.tensors[f"{name}.ids"].tolist()
        return Kept(n, default, {i: tree_map(self.put, self.tree(default, f"{name}.{i}")) for i in ids})

    def tree(self, like: Any, name: str) -> Any:
        return build(like, iter([self.tensors[f"{name}.{k}"].to(self.device) for k in range(len(leaves(like)))]))

    def mapping(self, name: str) -> dict[str, Any]:
        """What a mapping of that name held, with trees as tuples of their tensors."""
        keys = dict.fromkeys(key[len(name) + 1 :].split(".")[0] for key in self.tensors if key.startswith(f"{name}."))
        return {key: self._unknown(f"{name}.{key}") for key in keys}

    def _unknown(self, name: str) -> Any:
        if f"{name}.ids" not in self.tensors:
            return self._tensors(name)
        first = self._tensors(f"{name}.{int(self.tensors[f'{name}.ids'][0])}")
        like = tree_map(self.put, first)                   # what is saved may be a name, and not of the value's form
        return self.kept(int(self.tensors[f"{name}.n"]), zeros_like(like), name)

    def _tensors(self, name: str) -> tuple[Tensor, ...]:
        count = sum(key.startswith(f"{name}.") for key in self.tensors)
        return tuple(self.tensors[f"{name}.{k}"].to(self.device) for k in range(count))
