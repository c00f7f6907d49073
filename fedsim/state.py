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
from fedsim.tree import Far, build, leaves, tree_map, zeros_like
from fedsim.types import Kept

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


def layout(state: Any) -> dict[str, Any]:
    """What a state is made of, by its fields. A checkpoint is read back by the layout of the first state, so it stays.

    Raises:
        ConfigError: a field holds something that no checkpoint can.
    """
    found = {}
    for field, value in zip(state._fields, state, strict=True):
        try:
            found[field] = _layout(value)
        except TypeError as error:
            name = f"{type(state).__name__}.{field}"
            raise ConfigError(f"{name} is a {type(value).__name__}, which cannot be saved: {error}") from error
    return found


def _layout(value: Any) -> Any:
    if isinstance(value, Kept):
        return "Kept", {len(leaves(row)) for row in (value.default, *value.rows.values())}
    if isinstance(value, Mapping):
        return "mapping"
    if _is_state(value):
        return {field: _layout(part) for field, part in zip(value._fields, value, strict=True)}
    return len(leaves(value))


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
        like = self._tensors(f"{name}.{int(self.tensors[f'{name}.ids'][0])}")
        return self.kept(int(self.tensors[f"{name}.n"]), zeros_like(like), name)

    def _tensors(self, name: str) -> tuple[Tensor, ...]:
        count = sum(key.startswith(f"{name}.") for key in self.tensors)
        return tuple(self.tensors[f"{name}.{k}"].to(self.device) for k in range(count))
