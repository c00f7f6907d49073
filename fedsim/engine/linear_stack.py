"""Gradients of a stack of clients for networks of linear layers, as batched matrix products without autograd.

With activations ``h_0 = x``, ``z_l = h_{l-1} W_l^T + b_l``, ``h_l = act(z_l)`` and ``delta_L = dloss/dz_L``, the
gradients are ``dW_l = delta_l^T h_{l-1}``, ``db_l = sum_B delta_l`` and
``delta_{l-1} = (delta_l W_l) * act'(z_{l-1})``, each with a leading client axis.
Autograd computes only ``delta_L``, the derivative of the loss with respect to the outputs, so any loss is supported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from fedsim.engine.mixup import loss_of_mixed
from fedsim.engine.seeded import Seeded
from fedsim.engine.snapshot import alike
from fedsim.engine.traced import as_written, chain
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy
from fedsim.tree import Samples, mapped
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


def stacked_losses(loss: Callable[[Any, Any], Tensor], out: Tensor, y: Samples) -> Tensor:
    """Losses ``[c, B]`` of outputs and targets ``[c, B, ...]``."""
    c, b = out.shape[:2]
    targets = mapped(lambda t: t.reshape(c * b, *t.shape[2:]), y)
    return per_sample(loss_of_mixed(loss, out.reshape(c * b, *out.shape[2:]), targets), c * b).view(c, b)


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


Parameters: TypeAlias = Sequence[tuple[Tensor, Tensor | None]]
"""Weight ``[c, rows, columns]`` and bias ``[c, rows]`` of each layer, in the order of use."""
Factors: TypeAlias = list[tuple[Tensor, Tensor]]
"""``delta [c, B, rows]`` and inputs ``[c, B, columns]`` of each layer: its weights' gradient is ``delta^T inputs``."""
Along: TypeAlias = Sequence[tuple[Tensor | float, Factors]]
"""Gradients beside the parameters, each with a number ``[c]``, or one for all clients."""


LOW_COST = 3
"""Operations on factors for each on a gradient in memory."""

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


class DenseStack:
    """A ``Sequential`` of ``Flatten``, ``Linear`` and pointwise activations, for ``c`` clients at once."""

    def __init__(self, layers: list[_Layer], loss: Callable[[Tensor, Tensor], Tensor], flatten: bool) -> None:
        self.layers, self.loss, self.flatten = layers, loss, flatten
        self._drops = any(at.dropout for at in layers)
        self._edges = sum(at.rows + at.columns for at in layers)
        self.size = sum(at.rows * at.columns for at in layers)
        self.offsets = [at for layer in layers for at in (layer.start, layer.bias_start)[: 1 + layer.bias]]

    @classmethod
    def of(cls, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> DenseStack | None:
        """Stack for a ``Sequential``, a ``Linear``, or a module of one's own that amounts to such a chain; or None."""
        direct = cls._of(list(module) if _is(module, nn.Sequential) else [module], module, loss)
        if direct is not None or (parts := chain(module)) is None:
            return direct
        traced = cls._of(parts, module, loss)
        return traced if traced is not None and traced._computes(module) else None

    @classmethod
    def _of(
        cls, parts: list[nn.Module], module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> DenseStack | None:
        """Stack for a chain of layers with the parameters of ``module``, if it uses each of them once."""
        flatten = bool(parts) and _is(parts[0], nn.Flatten) and (parts[0].start_dim, parts[0].end_dim) == (1, -1)
        layers: list[_Layer] = []
        starts, at = {}, 0                                 # offsets follow registration, which may differ from use
        for p in module.parameters():
            starts[id(p)], at = at, at + p.numel()
        for part in parts[flatten:]:
            if _is(part, nn.Linear) and id(part.weight) in starts:
                start, bias = starts.pop(id(part.weight)), part.bias is not None
                if bias and starts.pop(id(part.bias), -1) != start + part.weight.numel():
                    return None
                layers.append(_Layer(start, part.out_features, part.in_features, bias, "identity"))
            elif _is(part, *_ACTIVATIONS) and layers and (layers[-1].activation, layers[-1].dropout) == ("identity", 0):
                layers[-1] = replace(layers[-1], activation=_ACTIVATIONS[type(part)])
            elif _is(part, nn.Dropout) and layers and not layers[-1].dropout and part.p < 1:
                layers[-1] = replace(layers[-1], dropout=part.p if part.training else 0.0)
            elif not _is(part, nn.Identity):
                return None
        return cls(layers, loss, flatten) if layers and not starts else None

    def _computes(self, module: nn.Module) -> bool:
        """Return whether the stack's outputs are those of ``module`` on some inputs, without dropout."""
        vector = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        drawn = torch.randn(3, self.layers[0].columns, generator=torch.Generator().manual_seed(0))
        x = drawn.to(vector)
        with torch.no_grad():
            try:
                want = copy.deepcopy(module).eval()(x)
            except Exception:                              # it takes inputs of another shape
                return False
            given, _ = self._forward(self.parameters(vector.unsqueeze(0)), x.unsqueeze(0), [None] * len(self.layers))
        return alike(given[-1][0], want, 1e-4)

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

    @property
    def part_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each parameter, in the order of ``offsets``."""
        return [s for at in self.layers for s in ((at.rows, at.columns), (at.rows,))[: 1 + at.bias]]

    def paired(self, parts: Sequence[Tensor]) -> Parameters:
        """Parameters in the order of ``offsets`` as weight and bias of each layer."""
        rest = iter(parts)
        return [(next(rest), next(rest) if layer.bias else None) for layer in self.layers]

    def is_low(self, samples: int) -> bool:
        """Whether gradients of so many samples cost less as factors than in memory, where a step goes along them."""
        return LOW_COST * samples * self._edges < self.size

    def squared_norms(self, factors: Factors) -> Tensor:
        """Squared norms ``[c]`` of gradients, in double precision, as it sums products of both signs."""
        total = torch.zeros((), dtype=torch.float64)
        for layer, (delta, given) in zip(self.layers, factors, strict=True):
            d, h = delta.double(), given.double()
            near = torch.bmm(h, h.mT)
            total = total + (torch.bmm(d, d.mT) * (near.add_(1) if layer.bias else near)).sum((1, 2))
        return total.clamp_(min=0)

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
        self, parameters: Parameters, batch: Batch, along: Along = ()
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (layer, ``delta [c, B, rows]``, inputs ``[c, B, columns]``) from the last layer to the first.

        A layer's parameters are not read after it is yielded, so they may be updated at once. The point is
        ``parameters`` and so many times the gradients ``along``.
        """
        c = len(batch.x)
        masks = self._masks(batch)
        given, hidden = self._forward(parameters, batch.x.reshape(c, batch.x.shape[1], -1), masks, along)
        delta = self._output_delta(given[-1], batch)
        for i in reversed(range(len(self.layers))):
            layer, mask = self.layers[i], masks[i]
            delta = _through(delta if mask is None else delta * mask, hidden[i], layer.activation)
            before = torch.bmm(delta, parameters[i][0]) if i else delta
            for r, factors in along if i else ():
                before.baddbmm_(torch.bmm(delta, factors[i][0].mT).mul_(per_client(r, 3)), factors[i][1])
            yield i, delta, given[i]
            delta = before

    def _forward(
        self, parameters: Parameters, x: Tensor, masks: Sequence[Tensor | None], along: Along = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs ``[c, B, columns]`` of each layer and, last, the output; and the activations before dropout."""
        given, hidden = [x], list[Tensor]()
        for i, (layer, (w, b), mask) in enumerate(zip(self.layers, parameters, masks, strict=True)):
            z = torch.bmm(given[-1], w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), given[-1], w.mT)
            for r, factors in along:                       # x (r delta^T h)^T, and r times the sum of delta
                near = torch.bmm(given[-1], factors[i][1].mT)
                z.baddbmm_((near if b is None else near.add_(1)).mul_(per_client(r, 3)), factors[i][0])
            hidden.append(_activate(z, layer.activation))
            given.append(hidden[-1] if mask is None else hidden[-1] * mask)
        return given, hidden

    def _masks(self, batch: Batch) -> list[Tensor | None]:
        """Dropout's factors ``[c, B, rows]`` of each layer's outputs, 0 or 1 / (1 - p); None without dropout."""
        if not self._drops:
            return [None] * len(self.layers)
        drawn, b = Seeded(None if batch.key is None else batch.key[:, 0]), batch.x.shape[1]
        return [
            drawn.coins(torch.Size((len(batch.x), b, at.rows)), 1 - at.dropout).to(batch.x.dtype).div_(1 - at.dropout)
            if at.dropout else None
            for at in self.layers
        ]  # fmt: skip

    def _output_delta(self, out: Tensor, batch: Batch) -> Tensor:
        """Derivative ``[c, B, k]`` of every client's mean loss with respect to its outputs."""
        b = out.shape[1]
        scale: float | Tensor = 1.0 / b
        if batch.weight is not None:
            scale = (batch.weight / batch.weight.sum(1, keepdim=True)).unsqueeze(2)
        if self.loss is cross_entropy and out.dim() == 3 and isinstance(batch.y, Tensor):
            delta = torch.softmax(out, 2)
            target = batch.y.unsqueeze(2)
            if out.is_cuda:                                # where a deterministic scatter sorts: the same numbers
                delta.sub_((target == torch.arange(out.shape[2], device=out.device)).to(delta.dtype))
            else:
                delta.scatter_add_(2, target, delta.new_tensor(-1.0).expand_as(target))
            return delta.mul_(scale)
        with torch.enable_grad():
            out = out.detach().requires_grad_()
            return torch.autograd.grad(stacked_losses(self.loss, out, batch.y).sum(), out)[0] * scale


def per_client(number: Tensor | float, dim: int) -> Any:
    """Numbers ``[c]`` of clients as ``[c, 1, ...]``, of so many dimensions; one for all as it is."""
    return number.view(-1, *[1] * (dim - 1)) if isinstance(number, Tensor) else number


def _is(module: nn.Module, *kinds: type[nn.Module]) -> TypeGuard[Any]:
    """Return whether a module is exactly of one of these classes, and does what they do."""
    return type(module) in kinds and as_written(module)


_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z, "relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_,
}  # fmt: skip


def _activate(z: Tensor, activation: str) -> Tensor:
    return _IN_PLACE[activation](z)


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
