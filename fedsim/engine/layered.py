"""Networks of linear layers, normalisation, embeddings and sums of branches, for a stack of clients at once.

The forward pass of `fedsim.engine.traced` runs on activations ``[c, B, ...]`` and parameters ``[c, *shape]`` under
autograd. Under ``torch.vmap`` every operation passes through Python several times, and gradients of weights arrive
transposed, to be copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.engine.linear_stack import stacked_losses
from fedsim.engine.snapshot import alike
from fedsim.engine.traced import ForwardStep, MeanOver, steps
from fedsim.tree import Samples

POINTWISE = (
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Dropout, nn.Identity,
)  # fmt: skip
"""Layers that do the same to tensors of any number of dimensions."""


class Layered:
    """A module whose forward pass is known layer by layer, for ``c`` clients at once.

    Args:
        module: it has the parameters, all of which are trained.
        forward: its steps.
    """

    def __init__(self, module: nn.Module, forward: list[ForwardStep]) -> None:
        self._module, self._steps = module, forward
        place = {id(p): i for i, p in enumerate(module.parameters())}
        self._own = [
            {} if at.layer is None else {key: place[id(p)] for key, p in at.layer.named_parameters()} for at in forward
        ]
        self._fits: dict[Any, bool] = {}

    @classmethod
    def of(cls, module: nn.Module) -> Layered | None:
        """The module, if it amounts to layers that are known here; or None."""
        found = steps(module)
        return cls(module, found) if found and all(map(_known, found)) else None

    def takes(self, x: Samples) -> bool:
        """Return whether the steps compute the module for inputs ``[c, B, ...]``: what a first batch says, without
        dropout, holds for all of its shape.
        """
        if not isinstance(x, Tensor):
            return False
        form = x.shape[2:], x.dtype
        if form not in self._fits:
            self._fits[form] = self._computes(x[:1])
        return self._fits[form]

    @torch.no_grad()
    def _computes(self, x: Tensor) -> bool:
        modes = [(layer, layer.training) for layer in self._layers()]
        try:
            for layer, _ in modes:
                layer.eval()
            want = copy.deepcopy(self._module).eval()(x[0])
            got = self.outputs([p.detach().unsqueeze(0) for p in self._module.parameters()], x)
        except Exception:                                  # such as sums of other shapes
            return False
        finally:
            for layer, training in modes:
                layer.training = training
        return alike(got[0], want, 1e-4)

    def _layers(self) -> list[nn.Module]:
        return [at.layer for at in self._steps if at.layer is not None]

    def outputs(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Outputs ``[c, B, ...]`` for ``parameters``, each ``[c, *shape]``, and inputs ``[c, B, ...]``."""
        found = [x]
        for at, own in zip(self._steps, self._own, strict=True):
            given = [found[i] for i in at.of]
            if at.layer is not None:
                found.append(_run(at.layer, given[0], {key: parameters[i] for key, i in own.items()}))
            elif given[0].shape == given[1].shape:
                found.append(given[0] + given[1])
            else:
                raise ValueError("a sum of tensors of two shapes, which align by their last dimension")
        return found[-1]

    def mean_losses(
        self, loss: Callable[[Any, Any], Tensor], parameters: Sequence[Tensor], x: Tensor, y: Samples,
        weight: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Mean losses ``[c]`` of a stack of clients, of their samples of weight 1 if there are weights ``[c, B]``."""
        losses = stacked_losses(loss, self.outputs(parameters, x), y)
        return losses.mean(1) if weight is None else (losses * weight).sum(1) / weight.sum(1)


def _known(step: ForwardStep) -> bool:
    layer = step.layer
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq
    return layer is None or type(layer) in (*POINTWISE, nn.Linear, nn.LayerNorm, nn.GroupNorm, MeanOver)


def _run(layer: Any, x: Tensor, own: dict[str, Tensor]) -> Tensor:
    """Output of a layer for activations ``[c, B, ...]`` and its parameters, each ``[c, *shape]``."""
    w, b = own.get("weight"), own.get("bias")
    if isinstance(layer, nn.Linear):
        out: Tensor = _Linear.apply(x.flatten(1, -2), w, b)   # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)
    if isinstance(layer, nn.LayerNorm):
        shape = layer.normalized_shape
        return _affine(F.layer_norm(x, shape, eps=layer.eps), w, b, x.dim() - len(shape))
    if isinstance(layer, nn.GroupNorm):
        normal = F.group_norm(x.flatten(0, 1), layer.num_groups, eps=layer.eps).view(x.shape)
        return _affine(normal, w, b, 2)
    if isinstance(layer, nn.Embedding):
        return _embedded(layer, x, own["weight"])
    if isinstance(layer, nn.Flatten):
        return x.flatten(2)
    if isinstance(layer, MeanOver):
        return x.mean([dim + (dim > 0) for dim in layer.dims])
    same: Tensor = layer(x)
    return same


def _affine(x: Tensor, w: Tensor | None, b: Tensor | None, at: int) -> Tensor:
    """``w x + b`` for parameters ``[c, *shape]`` of the dimensions of ``x`` from ``at`` on."""
    if w is None:
        return x
    shape = len(w), *[1] * (at - 1), *w.shape[1:], *[1] * (x.dim() - at - w.dim() + 1)
    return x * w.view(shape) if b is None else torch.addcmul(b.view(shape), x, w.view(shape))


def _embedded(layer: nn.Embedding, x: Tensor, w: Tensor) -> Tensor:
    """Rows ``[c, B, ..., k]`` of each client's table ``[c, n, k]``."""
    first = torch.arange(len(w), device=x.device) * layer.num_embeddings
    out = F.embedding(x + first.view(-1, *[1] * (x.dim() - 1)), w.flatten(0, 1))
    if layer.padding_idx is None:
        return out
    return torch.where((x == layer.padding_idx).unsqueeze(-1), out.detach(), out)   # that row is not trained


class _Linear(torch.autograd.Function):
    """``x W^T + b`` for inputs ``[c, N, k]``; the gradient of ``W`` comes in its own order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):       # which is over in the backward pass
            low = torch.get_autocast_dtype(x.device.type)
            x, w = x.to(low), w.to(low)
        ctx.save_for_backward(x, w)
        ctx.biased = b is not None
        return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)

    @staticmethod
    def backward(ctx: Any, *delta: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        (d,), (x, w) = delta, ctx.saved_tensors
        before = torch.bmm(d, w) if ctx.needs_input_grad[0] else None
        return before, torch.bmm(d.mT, x), d.sum(1) if ctx.biased else None
