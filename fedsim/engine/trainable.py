"""Refusals of modules and losses whose training a flat vector of parameters cannot express."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError


def check_trainable(module: nn.Module) -> None:
    """Check what is lost when a module is copied, or its parameters become views of a vector.

    Raises:
        ModelError: a parameter has a gradient hook, is complex, or has its memory in common with another tensor; or a
            layer is one of torch.jit.
    """
    if scripted := [name for name, layer in module.named_modules() if isinstance(layer, torch.jit.ScriptModule)]:
        raise ModelError(
            f"{f'layer {scripted[0]!r}' if scripted[0] else 'the model'} is of torch.jit, which keeps its parameters"
            " from the engine; expected the module from which it was made"
        )
    shaped = [(name, p) for name, p in module.named_parameters() if not nn.parameter.is_lazy(p)]
    owners: dict[int, str] = {}
    for name, t in (*shaped, *((name, b) for name, b in module.named_buffers() if not nn.parameter.is_lazy(b))):
        if t._backward_hooks or t._post_accumulate_grad_hooks:
            raise ModelError(
                f"parameter {name!r} has a gradient hook, which would not run in copies of the module; change the"
                " gradient in forward instead: mask * w + (1 - mask) * w.detach() trains a part of w"
            )
        if t.is_complex() and t.requires_grad:
            raise ModelError(
                f"parameter {name!r} is complex; expected real ones: hold torch.view_as_real(w) and use"
                " torch.view_as_complex(w) in forward"
            )
        if t.is_meta or not t.numel() or t.is_sparse:
            continue
        first = owners.setdefault(t.data_ptr(), name)
        if first != name and any(p.requires_grad for at, p in shaped if at in (first, name)):
            raise ModelError(
                f"{first!r} and {name!r} have their memory in common without being one parameter, so that training"
                " would part them; to tie layers, assign the parameter itself (decoder.weight = encoder.weight), and to"
                " separate them use .detach().clone()"
            )


def check_registered(losses: Callable[[], Tensor], parameters: Iterable[Tensor], name: str) -> None:
    """Check that losses depend on no trainable tensor but the parameters.

    Args:
        losses: computes those of the same samples at each call, from new tensors.
        parameters: they are trained.
        name: of the module.

    Raises:
        ModelError: they do.
    """
    known = {id(p) for p in parameters}
    first = [t for t in _leaves(losses().grad_fn) if id(t) not in known]
    lasting = {id(t) for t in _leaves(losses().grad_fn)} if first else set()   # others are made in forward
    if found := [list(t.shape) for t in first if id(t) in lasting]:
        raise ModelError(
            f"{name} or its loss computes with trainable tensors of shape {', '.join(map(str, found[:3]))} that are no"
            " parameters of the module, so that nothing would train them. Hold layers in an nn.ModuleList or"
            " nn.ModuleDict, and tensors as nn.Parameter; a loss that needs parameters gets them from forward, beside"
            " the outputs; constants need requires_grad=False"
        )


def _leaves(root: Any) -> Iterator[Tensor]:
    """Tensors from which autograd's graph begins."""
    todo, met = [root], set[Any]()
    while todo:
        node = todo.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            yield node.variable
        todo += [next_ for next_, _ in node.next_functions]


def refuse_parameters_of(loss: Callable[[Any, Any], Tensor]) -> None:
    """Refuse a loss that is a module with parameters."""
    if isinstance(loss, nn.Module) and (names := [name for name, p in loss.named_parameters() if p.requires_grad]):
        raise ModelError(
            f"the loss {type(loss).__name__} has parameters ({', '.join(names)}), which nothing would train; make them"
            " a part of the model, or buffers if they are constants"
        )


def refuse_lazy_layers(module: nn.Module) -> None:
    """Refuse a module with parameters that have no shape."""
    if shapeless := [name for name, p in module.named_parameters() if nn.parameter.is_lazy(p)]:
        raise ModelError(f"parameter {shapeless[0]!r} has no shape yet; call the module on a sample before")
