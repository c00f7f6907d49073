"""The layers that a user's module amounts to, read off its ``forward`` by ``torch.fx``.

A class with layers as attributes and functions between them (``F.relu(self.fc1(x.flatten(1)))``) then runs as the
layers that it means, one after the other or with sums of branches. What is not recognised runs as it is written.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.fx import Node

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""What may change a module's input or output unseen."""


def as_written(module: nn.Module) -> bool:
    """Return whether a call of a module is one of its class's ``forward``: no hooks, none of the instance's own."""
    return "forward" not in vars(module) and not any(getattr(module, hooks) for hooks in HOOKS)


FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU,
    F.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
    F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, F.gelu: nn.GELU, F.silu: nn.SiLU,
}  # fmt: skip
"""Functions and methods of one tensor, and the layers that do the same."""


WITH_PARAMETERS = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Embedding)
"""Layers whose parameters may be those of a module that is recognised."""

SUMS = (operator.add, torch.add, "add")


class MeanOver(nn.Module):
    """Mean over some dimensions, none of which is that of the samples."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """See ``torch.mean``."""
        return x.mean(self.dims)


class ForwardStep(NamedTuple):
    """One step of a forward pass: a layer, or without one the sum of two results.

    Attributes:
        layer: of the module, or one that does the same.
        of: its inputs: 0 is the module's, i the result of the i-th step from 1 on.
    """

    layer: nn.Module | None
    of: tuple[int, ...]


def chain(module: nn.Module) -> list[nn.Module] | None:
    """Layers that one after the other do what ``module`` does, its own among them; None if it has another form."""
    found = steps(module)
    if found is None or any(step.layer is None or step.of != (i,) for i, step in enumerate(found)):
        return None
    return [step.layer for step in found if step.layer is not None]


def steps(module: nn.Module) -> list[ForwardStep] | None:
    """Steps of the forward pass of ``module``, the last of which returns its output; None if it has another form."""
    layers = list(module.modules())
    if not all(map(as_written, layers)) or any(True for _ in module.buffers()):
        return None
    if any(type(at) not in WITH_PARAMETERS and any(True for _ in at.parameters(recurse=False)) for at in layers):
        return None
    from torch.fx import Tracer

    class Graded(Tracer):
        def create_node(self, *args: Any, **kwargs: Any) -> Node:
            if not torch.is_grad_enabled():                # which a graph does not tell
                raise ValueError("a part without gradients")
            return super().create_node(*args, **kwargs)

    try:
        with torch.enable_grad():
            graph = Graded().trace(copy.deepcopy(module))  # a copy, as forward may set attributes
    except Exception:                                      # it branches on values, or whatever else users write
        return None
    found: list[ForwardStep] = []
    places: dict[Node, int] = {}                           # of results
    for node in graph.nodes:
        if node.op == "placeholder" and not places:
            places[node] = 0
        elif node.op == "output":
            return found if node.args == (list(places)[-1],) else None
        elif not _is_size(node):
            if (step := _step(node, places, module)) is None:
                return None
            found.append(step)
            places[node] = len(found)
    return None


def _step(node: Node, places: dict[Node, int], module: nn.Module) -> ForwardStep | None:
    if node.target in SUMS and len(node.args) == 2 and not node.kwargs:
        of = tuple(places[arg] for arg in node.args if arg in places)   # type: ignore[index]
        return ForwardStep(None, of) if len(of) == 2 else None
    if not node.args or node.args[0] not in places or (layer := _layer(node, module)) is None:
        return None
    in_place = getattr(layer, "inplace", False) or node.kwargs.get("inplace") or str(node.target).endswith("_")
    if in_place and len(node.args[0].users) > 1:           # type: ignore[union-attr]
        return None                                        # others see what it writes
    return ForwardStep(layer, (places[node.args[0]],))            # type: ignore[index]


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
    if node.target in ("mean", torch.mean) and len(rest) + len(kwargs) == 1:
        dim = rest[0] if rest else kwargs.get("dim")
        over = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
        return MeanOver(over) if all(isinstance(each, int) and each for each in over) else None
    if node.target in ("view", "reshape") and len(rest) == 2 and not kwargs:
        rows, columns = rest
        by_rows = columns == -1 and _is_size_of(rows)
        return nn.Flatten() if by_rows or (rows == -1 and isinstance(columns, int)) else None
    return None
