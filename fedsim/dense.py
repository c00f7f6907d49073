"""Gradients of a stack of clients for networks of linear layers, as batched matrix products without autograd.

With activations ``h_0 = x``, ``z_l = h_{l-1} W_l^T + b_l``, ``h_l = act(z_l)`` and ``delta_L = dloss/dz_L``, the gradients are
``dW_l = delta_l^T h_{l-1}``, ``db_l = sum_B delta_l`` and ``delta_{l-1} = (delta_l W_l) * act'(z_{l-1})``, each with a leading client axis.
Autograd is asked only for ``delta_L``, the derivative of the loss by the network's outputs, so any loss will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedsim.models.losses import cross_entropy
from fedsim.types import Batch


@dataclass(frozen=True)
class _Layer:
    start: int                                             # offset of the weight in the flat vector
    rows: int
    columns: int
    bias: bool
    activation: str


_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


class DenseStack:
    """A ``Sequential`` of ``Flatten``, ``Linear`` and pointwise activations, for ``c`` clients at once."""

    def __init__(self, layers: list[_Layer], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.layers, self.loss = layers, loss

    @classmethod
    def of(cls, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> DenseStack | None:
        """The stack for this module, or None when it is of any other form."""
        parts = list(module) if isinstance(module, nn.Sequential) else [module]
        if parts and type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1):
            parts = parts[1:]
        layers: list[_Layer] = []
        start, seen = 0, set()
        for part in parts:
            if type(part) is nn.Linear and id(part) not in seen and not part._forward_hooks:
                layers.append(_Layer(start, part.out_features, part.in_features, part.bias is not None, "identity"))
                start += part.weight.numel() + (part.out_features if part.bias is not None else 0)
                seen.add(id(part))
            elif type(part) in _ACTIVATIONS and layers and layers[-1].activation == "identity":
                layers[-1] = replace(layers[-1], activation=_ACTIVATIONS[type(part)])
            else:
                return None
        return cls(layers, loss) if layers else None

    def gradients(self, xs: Tensor, batch: Batch) -> Tensor:
        """Gradients ``[c, d]`` at ``xs [c, d]`` of each client's mean loss on its row of ``batch`` (``[c, B, ...]``)."""
        c = len(xs)
        weights = [xs[:, l.start : l.start + l.rows * l.columns].view(c, l.rows, l.columns) for l in self.layers]
        hidden = [batch.x.reshape(c, batch.x.shape[1], -1)]
        for layer, w in zip(self.layers, weights, strict=True):
            z = torch.bmm(hidden[-1], w.mT)
            if layer.bias:
                z += _bias(xs, layer).unsqueeze(1)
            hidden.append(_activate(z, layer.activation))
        delta = self._output_delta(hidden[-1], batch)
        grads = torch.empty_like(xs)
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            delta = _through(delta, hidden[i + 1], layer.activation)
            w_grad = grads[:, layer.start : layer.start + layer.rows * layer.columns].view(c, layer.rows, layer.columns)
            torch.bmm(delta.mT, hidden[i], out=w_grad)
            if layer.bias:
                torch.sum(delta, 1, out=_bias(grads, layer))
            if i:
                delta = torch.bmm(delta, weights[i])
        return grads

    def _output_delta(self, out: Tensor, batch: Batch) -> Tensor:
        """Derivative ``[c, B, k]`` of every client's mean loss by its outputs."""
        c, b = out.shape[:2]
        if batch.weight is None:
            scale = torch.full((), 1.0 / b, dtype=out.dtype, device=out.device)
        else:
            scale = (batch.weight / batch.weight.sum(1, keepdim=True)).unsqueeze(2)
        if self.loss is cross_entropy and out.dim() == 3:
            delta = torch.softmax(out, 2)
            delta.scatter_add_(2, batch.y.unsqueeze(2), delta.new_full((), -1.0).expand(c, b, 1))
            return delta.mul_(scale)
        with torch.enable_grad():
            flat = out.detach().reshape(c * b, *out.shape[2:]).requires_grad_()
            losses = self.loss(flat, batch.y.reshape(c * b, *batch.y.shape[2:])).reshape(c, b)
            return torch.autograd.grad(losses.sum(), flat)[0].reshape(out.shape) * scale


def _bias(xs: Tensor, layer: _Layer) -> Tensor:
    start = layer.start + layer.rows * layer.columns
    return xs[:, start : start + layer.rows]


def _activate(z: Tensor, activation: str) -> Tensor:
    if activation == "identity":
        return z
    return {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_}[activation](z)


def _through(delta: Tensor, h: Tensor, activation: str) -> Tensor:
    """``delta`` times the activation's derivative, which all three give from their own output ``h``."""
    if activation == "relu":
        return delta * (h > 0)
    if activation == "tanh":
        return delta * (1 - h * h)
    if activation == "sigmoid":
        return delta * (h * (1 - h))
    return delta
