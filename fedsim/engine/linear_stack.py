"""Gradients of a stack of clients for networks of linear layers, as batched matrix products without autograd.

With activations ``h_0 = x``, ``z_l = h_{l-1} W_l^T + b_l``, ``h_l = act(z_l)`` and ``delta_L = dloss/dz_L``, the
gradients are ``dW_l = delta_l^T h_{l-1}``, ``db_l = sum_B delta_l`` and
``delta_{l-1} = (delta_l W_l) * act'(z_{l-1})``, each with a leading client axis.
Autograd computes only ``delta_L``, the derivative of the loss with respect to the outputs, so any loss is supported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from fedsim.engine.seeded import Seeded
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy
from fedsim.tree import Samples
from fedsim.types import Batch


def per_sample(losses: Tensor, count: int) -> Tensor:
    """Check that there is one loss for each of ``count`` samples, and return the losses.

    Raises:
        ModelError: ``losses`` is not ``[count]``.
    """
    if losses.shape != (count,):
        raise ModelError(
            f"the loss returned shape {tuple(losses.shape)} for {count} samples; expected [{count}], one loss for"
            " each sample (with a torch.nn.functional loss: reduction='none')"
        )
    return losses


@dataclass(frozen=True)
class _Layer:
    start: int                                             # offset of the weight in the flat vector
    rows: int
    columns: int
    bias: bool
    activation: str
    dropout: float = 0.0

    @property
    def bias_start(self) -> int:
        """Offset of the bias."""
        return self.start + self.rows * self.columns


_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


class DenseStack:
    """A ``Sequential`` of ``Flatten``, ``Linear`` and pointwise activations, for ``c`` clients at once."""

    def __init__(self, layers: list[_Layer], loss: Callable[[Tensor, Tensor], Tensor], flatten: bool) -> None:
        self.layers, self.loss, self.flatten = layers, loss, flatten

    @classmethod
    def of(cls, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> DenseStack | None:
        """Stack for ``module``, or None if the module has another form."""
        parts = list(module) if _is(module, nn.Sequential) else [module]
        flatten = bool(parts) and _is(parts[0], nn.Flatten) and (parts[0].start_dim, parts[0].end_dim) == (1, -1)
        parts = parts[flatten:]
        layers: list[_Layer] = []
        start, seen = 0, set()
        for part in parts:
            if _is(part, nn.Linear) and id(part.weight) not in seen:
                layers.append(_Layer(start, part.out_features, part.in_features, part.bias is not None, "identity"))
                start += part.weight.numel() + (part.out_features if part.bias is not None else 0)
                seen.add(id(part.weight))
            elif _is(part, *_ACTIVATIONS) and layers and (layers[-1].activation, layers[-1].dropout) == ("identity", 0):
                layers[-1] = replace(layers[-1], activation=_ACTIVATIONS[type(part)])
            elif _is(part, nn.Dropout) and layers and not layers[-1].dropout and part.p < 1:
                layers[-1] = replace(layers[-1], dropout=part.p if part.training else 0.0)
            else:
                return None
        return cls(layers, loss, flatten) if layers else None

    def takes(self, x: Samples) -> bool:
        """Return whether the products below compute the module for inputs ``[c, B, ...]``."""
        return isinstance(x, Tensor) and (self.flatten or x.dim() == 3) and x[0, 0].numel() == self.layers[0].columns

    def gradients(self, xs: Tensor, batch: Batch) -> Iterator[tuple[int, Tensor]]:
        """Gradients at ``xs [c, d]`` of each client's mean loss on its row of ``batch`` (``[c, B, ...]``).

        Yields one parameter after the other, from last to first, as (offset, gradient ``[c, size]``). A parameter's
        columns of ``xs`` are not read after its gradient is yielded, so they may be updated at once.
        """
        for i, delta, given in self.backward(self.parameters(xs), batch):
            layer = self.layers[i]
            if layer.bias:
                yield layer.bias_start, delta.sum(1)
            # no out=: writing into the strided rows of one [c, d], PyTorch would run one product at a time
            yield layer.start, torch.bmm(delta.mT, given).view(len(xs), -1)

    def parameters(self, xs: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Views in ``xs [c, d]`` of each layer's weight ``[c, rows, columns]`` and bias ``[c, rows]`` (or None)."""
        return [
            (
                xs[:, at.start : at.bias_start].view(-1, at.rows, at.columns),
                xs[:, at.bias_start : at.bias_start + at.rows] if at.bias else None,
            )
            for at in self.layers
        ]

    def backward(
        self, parameters: Sequence[tuple[Tensor, Tensor | None]], batch: Batch
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (layer, ``delta [c, B, rows]``, inputs ``[c, B, columns]``) from the last layer to the first.

        A layer's parameters are not read after it is yielded, so they may be updated at once.
        """
        c = len(batch.x)
        given = [batch.x.reshape(c, batch.x.shape[1], -1)]     # to each layer; the last is the output
        hidden: list[Tensor] = []
        masks = self._masks(batch)
        for layer, (w, b), mask in zip(self.layers, parameters, masks, strict=True):
            z = torch.bmm(given[-1], w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), given[-1], w.mT)
            hidden.append(_activate(z, layer.activation))
            given.append(hidden[-1] if mask is None else hidden[-1] * mask)
        delta = self._output_delta(given[-1], batch)
        for i in reversed(range(len(self.layers))):
            layer, mask = self.layers[i], masks[i]
            delta = _through(delta if mask is None else delta * mask, hidden[i], layer.activation)
            before = torch.bmm(delta, parameters[i][0]) if i else delta
            yield i, delta, given[i]
            delta = before

    def _masks(self, batch: Batch) -> list[Tensor | None]:
        """Dropout's factors ``[c, B, rows]`` of each layer's outputs, 0 or 1 / (1 - p); None without dropout."""
        drawn, b = Seeded(None if batch.key is None else batch.key[:, 0]), batch.x.shape[1]
        return [
            drawn.coins(torch.Size((len(batch.x), b, at.rows)), 1 - at.dropout).to(batch.x.dtype).div_(1 - at.dropout)
            if at.dropout else None
            for at in self.layers
        ]  # fmt: skip

    def _output_delta(self, out: Tensor, batch: Batch) -> Tensor:
        """Derivative ``[c, B, k]`` of every client's mean loss with respect to its outputs."""
        c, b = out.shape[:2]
        scale: float | Tensor = 1.0 / b
        if batch.weight is not None:
            scale = (batch.weight / batch.weight.sum(1, keepdim=True)).unsqueeze(2)
        if self.loss is cross_entropy and out.dim() == 3:
            delta = torch.softmax(out, 2)
            target = batch.y.unsqueeze(2)
            delta.scatter_(2, target, delta.gather(2, target) - 1)
            return delta.mul_(scale)
        with torch.enable_grad():
            flat = out.detach().reshape(c * b, *out.shape[2:]).requires_grad_()
            losses = per_sample(self.loss(flat, batch.y.reshape(c * b, *batch.y.shape[2:])), c * b)
            return torch.autograd.grad(losses.sum(), flat)[0].reshape(out.shape) * scale


def _is(module: nn.Module, *kinds: type[nn.Module]) -> TypeGuard[Any]:
    """Return whether a module is exactly of one of these classes, without hooks that change its input or output."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return type(module) in kinds and not any(getattr(module, name) for name in hooks)


def _activate(z: Tensor, activation: str) -> Tensor:
    if activation == "identity":
        return z
    return {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_}[activation](z)


def _through(delta: Tensor, h: Tensor, activation: str) -> Tensor:
    """``delta`` times the activation's derivative, computed from the activation's output ``h``."""
    if activation == "relu":
        passed: Tensor = torch.ops.aten.threshold_backward.default(delta, h, 0)  # delta where h > 0, in one pass
        return passed
    if activation == "tanh":
        return delta * (1 - h * h)
    if activation == "sigmoid":
        return delta * (h * (1 - h))
    return delta
