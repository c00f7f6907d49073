"""An nn.Module seen as a function of one flat vector: its loss, its gradient for one client or a stack, its evaluation.

Parameter trees exist only in this file. One client at a time runs plain autograd on views of the vector; a stack of
clients runs either matrix products written out by hand (``fedsim.dense``) or ``torch.vmap`` of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter

import torch
from torch import Tensor, nn

from fedsim.dense import DenseStack
from fedsim.errors import ModelError
from fedsim.types import Batch, Vector

Loss = Callable[[Tensor, Tensor], Tensor]
"""Per-sample loss: outputs ``[B, ...]`` and targets ``[B, ...]`` to ``[B]``."""


class Model:
    """A module, its per-sample loss and an optional penalty, as functions of the flat parameter vector ``[d]``.

    Args:
        module: any ``nn.Module`` without BatchNorm and Dropout.
        loss: ``(outputs [B, ...], targets [B, ...]) -> [B]``; one number for each sample, not their mean.
        penalty: differentiable function of the vector, added to every client's objective.
        device: where it runs.
        dtype: floating-point type of parameters and inputs.

    Raises:
        ModelError: the module mixes samples of a batch or draws random numbers of its own.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        penalty: Callable[[Vector], Tensor] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _refuse_unsafe_layers(module)
        self.module = module.to(device=device, dtype=dtype).train()
        self.loss, self.penalty, self.device, self.dtype = loss, penalty, torch.device(device), dtype
        named = dict(module.named_parameters())
        if not named:
            raise ModelError(f"{type(module).__name__} has no parameters; expected a module with something to train")
        self.names, self.parameters = list(named), list(named.values())
        self.shapes = [p.shape for p in self.parameters]
        self.sizes = [p.numel() for p in self.parameters]
        self.d = sum(self.sizes)
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self.convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
        self.dense = DenseStack.of(module, loss) if penalty is None else None
        self._channels_last = self.convolutional and self.device.type == "cpu"

    def vector(self) -> Vector:
        """A copy of the module's present parameters ``[d]``."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def load(self, x: Vector) -> nn.Module:
        """The module with its parameters set to views of ``x``."""
        if self.parameters[0].data_ptr() != x.data_ptr():   # equal while a step updates x in place
            views = x.detach().split_with_sizes(self.sizes)
            for p, view, shape in zip(self.parameters, views, self.shapes, strict=True):
                p.data = view.view(shape)
        return self.module

    def gradient(self, x: Vector, batch: Batch) -> Vector:
        """Gradient ``[d]`` of the mean loss (plus penalty) of one client's batch."""
        return torch.cat(self._one_client(x, batch))

    def _one_client(self, x: Vector, batch: Batch) -> list[Tensor]:
        self.load(x)
        with torch.enable_grad():
            losses = self._losses(self.module(self._input(batch.x)), batch.y)
            grads = torch.autograd.grad(_mean(losses, batch.weight), self.parameters, materialize_grads=True)
        flat = [g.reshape(-1) for g in grads]
        if self.penalty is None:
            return flat
        extra = torch.func.grad(self.penalty)(x).split_with_sizes(self.sizes)
        return [g + p for g, p in zip(flat, extra, strict=True)]

    def gradients(self, xs: Tensor, batch: Batch) -> Tensor:
        """Gradients ``[c, d]`` of ``c`` clients at ``xs [c, d]``, each on its row of ``batch`` (``[c, B, ...]``)."""
        return joined(self.gradient_parts(xs, batch))

    def gradient_parts(self, xs: Tensor, batch: Batch) -> Iterator[tuple[int, Tensor]]:
        """The same in parts ``[c, d_p]``, each with its offset in the vector, in any order.

        The columns of ``xs`` that a part belongs to are not read after it was given out.
        """
        if self.dense is not None:
            yield from self.dense.gradients(xs, batch)
        elif len(xs) == 1:                                 # as in the loop: grouped convolutions are slower
            one = Batch(batch.x[0], batch.y[0], None if batch.weight is None else batch.weight[0])
            yield from zip(self.offsets, (g.unsqueeze(0) for g in self._one_client(xs[0], one)), strict=True)
        else:
            yield from zip(self.offsets, self._stacked(xs, batch), strict=True)

    def _stacked(self, xs: Tensor, batch: Batch) -> list[Tensor]:
        """Gradients of every parameter, ``[c, d_p]`` each, from ``torch.vmap`` of the module."""
        with torch.enable_grad():
            columns = zip(xs.split_with_sizes(self.sizes, 1), self.shapes, strict=True)
            parts = [p.reshape(-1, *s).detach().requires_grad_() for p, s in columns]
            mean = torch.vmap(self._functional_loss, in_dims=(0, 0, 0, None if batch.weight is None else 0))
            total = mean(parts, batch.x, batch.y, batch.weight).sum()
            grads = torch.autograd.grad(total, parts, materialize_grads=True)
        flat = [g.reshape(len(xs), -1) for g in grads]
        if self.penalty is None:
            return flat
        extra = torch.vmap(torch.func.grad(self.penalty))(xs).split_with_sizes(self.sizes, 1)
        return [g + p for g, p in zip(flat, extra, strict=True)]

    @torch.no_grad()
    def outputs(self, x: Vector, inputs: Tensor, batch_size: int = 256) -> Tensor:
        """The module's outputs at ``x`` for all ``inputs [N, ...]``, computed ``batch_size`` samples at a time."""
        module = self.load(x).eval()
        try:
            return torch.cat([module(self._input(part)) for part in torch.split(inputs, batch_size)])
        finally:
            module.train()

    def _functional_loss(self, parts: list[Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        out = torch.func.functional_call(self.module, dict(zip(self.names, parts, strict=True)), (x,))
        return _mean(self._losses(out, y), weight)

    def _losses(self, out: Tensor, y: Tensor) -> Tensor:
        losses = self.loss(out, y)
        if losses.shape != y.shape[:1]:
            raise ModelError(
                f"the loss returned shape {tuple(losses.shape)} for {len(y)} samples; expected [{len(y)}], one loss for"
                " each sample (with a torch.nn.functional loss: reduction='none')"
            )
        return losses

    def _input(self, x: Tensor) -> Tensor:
        """Images in channels-last layout, where oneDNN's convolutions and PyTorch's pooling are fastest on a CPU."""
        if not self._channels_last or x.dim() != 4:
            return x
        if x.shape[1] == 1:                                # one channel has both layouts: say which
            return x.contiguous().as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
        return x.contiguous(memory_format=torch.channels_last)


def joined(parts: Iterable[tuple[int, Tensor]]) -> Tensor:
    """One tensor ``[c, d]`` from parts ``[c, d_p]`` with their offsets."""
    return torch.cat([part for _, part in sorted(parts, key=itemgetter(0))], 1)


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()


def _refuse_unsafe_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise ModelError(
                f"layer {name!r} is {type(layer).__name__} in training mode: its statistics mix samples and are no"
                " parameters, so they would be neither averaged nor charged. Use nn.GroupNorm (or put the layer in eval"
                " mode with frozen statistics)."
            )
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ModelError(
                f"layer {name!r} is {type(layer).__name__}(p={layer.p}), which draws random numbers that no seed of a"
                " run controls. Remove it or set p=0."
            )
