"""The chain of layers that a user's module amounts to, read off its ``forward`` by ``torch.fx``.

A class with layers as attributes and functions between them (``F.relu(self.fc1(x.flatten(1)))``) then runs as the
``Sequential`` that it means. What is not recognised runs as it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.fx import Node

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""What may change a module's input or output unseen."""

FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU,
    F.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
    F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
}  # fmt: skip
"""Functions and methods of one tensor, and the layers that do the same."""


def chain(module: nn.Module) -> list[nn.Module] | None:
    """Layers that one after the other do what ``module`` does, its own among them; None if it has another form."""
    layers = list(module.modules())
    if any(getattr(layer, hooks) for layer in layers for hooks in HOOKS) or any(True for _ in module.buffers()):
        return None
    if any(type(layer) is not nn.Linear and any(True for _ in layer.parameters(recurse=False)) for layer in layers):
        return None
    from torch.fx import Tracer

    try:
        graph = Tracer().trace(copy.deepcopy(module))      # a copy, as forward may set attributes
    except Exception:                                      # it branches on values, or whatever else users write
        return None
    parts: list[nn.Module] = []
    last: Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder" and last is None:
            last = node
        elif node.op == "output":
            return parts if node.args == (last,) else None
        elif not _is_size(node):
            if not node.args or node.args[0] is not last or (part := _layer(node, module)) is None:
                return None
            parts.append(part)
            last = node
    return None


def _is_size(node: Node) -> bool:
    """Return whether a node is a number of rows: ``x.size(0)``, ``x.shape`` or ``x.shape[0]``."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    rest = node.args[1:]
    return (name, rest) in (("size", (0,)), ("size", ()), ("getattr", ("shape",))) or (
        name == "getitem" and rest == (0,) and _is_size_of(node.args[0])
    )


def _is_size_of(arg: Any) -> bool:
    return hasattr(arg, "target") and arg.op != "placeholder" and _is_size(arg)


def _layer(node: Node, module: nn.Module) -> nn.Module | None:
    """The layer that does what a node does to its first argument."""
    rest, kwargs = node.args[1:], dict[str, Any](node.kwargs)
    if node.op == "call_module":
        return module.get_submodule(str(node.target)) if not rest and not kwargs else None
    if node.target in FUNCTIONS and not rest and not kwargs.keys() - {"inplace"}:
        return FUNCTIONS[node.target]()
    if node.target is F.dropout and not rest and {"p", "training"} <= kwargs.keys():
        return nn.Dropout(kwargs["p"]).train(kwargs["training"])
    if node.target in ("flatten", torch.flatten):
        dims = {**dict(zip(("start_dim", "end_dim"), rest, strict=False)), **kwargs}
        return nn.Flatten() if dims in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1}) else None
    if node.target in ("view", "reshape") and len(rest) == 2 and not kwargs:
        rows, columns = rest
        by_rows = columns == -1 and _is_size_of(rows)
        return nn.Flatten() if by_rows or (rows == -1 and isinstance(columns, int)) else None
    return None
