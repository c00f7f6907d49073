"""An algorithm's state as named tensors and back, for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.tree import Far, build, leaves, tree_map
from fedsim.types import Kept


def flatten(state: Any) -> dict[str, Callable[[], Tensor]]:
    """Every tensor of a state by a name, as functions so that large memories are copied to the host one by one."""
    named: dict[str, Callable[[], Tensor]] = {}
    for field, value in zip(state._fields, state, strict=True):
        if isinstance(value, Kept):
            ids = torch.tensor(sorted(value.rows), dtype=torch.int64)
            named[f"{field}.ids"] = ids.clone
            for node in ids.tolist():
                _name(named, f"{field}.{node}", value.rows[node])
        else:
            _name(named, field, value)
    return named


def restore(template: Any, tensors: Mapping[str, Tensor], put: Callable[[Tensor], Any] = lambda row: row) -> Any:
    """The state that ``flatten`` named.

    Args:
        template: a state of the same algorithm, e.g. its first.
        tensors: as they were named; read one by one.
        put: where a node's memory goes once it is read.
    """
    fields = []
    for field, value in zip(template._fields, template, strict=True):
        if isinstance(value, Kept):
            rows = {
                node: tree_map(put, _read(value.default, tensors, f"{field}.{node}"))
                for node in tensors[f"{field}.ids"].tolist()
            }
            fields.append(Kept(value.n, value.default, rows))
        else:
            fields.append(_read(value, tensors, field))
    return type(template)(*fields)


def _name(named: dict[str, Callable[[], Tensor]], prefix: str, tree: Any) -> None:
    for k, leaf in enumerate(leaves(tree)):
        named[f"{prefix}.{k}"] = leaf.saved if isinstance(leaf, Far) else leaf.cpu   # called when it is written


def _read(like: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    found = [tensors[f"{prefix}.{k}"].to(leaf.device) for k, leaf in enumerate(leaves(like))]
    return build(like, iter(found))
