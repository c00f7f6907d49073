"""An nn.Module as a function of one flat vector: loss, gradients for one client or a stack of them, and evaluation.

Parameter trees exist only in this file. A single client runs plain autograd on views of the vector; a stack of clients
runs either hand-written matrix products (``linear_stack``) or ``torch.vmap`` of the module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.engine.batch_norm import statistics_of
from fedsim.engine.layered import Layered
from fedsim.engine.linear_stack import DenseStack, per_sample
from fedsim.engine.micro_batches import micro_batches
from fedsim.engine.mixup import loss_of_mixed
from fedsim.engine.numerics import FULL, Numerics, make_cuda_deterministic
from fedsim.engine.seeded import Seeded, UnbatchedDrawError, dropouts
from fedsim.engine.sharing import Sharing
from fedsim.engine.trainable import check_trainable, refuse_lazy_layers, refuse_parameters_of
from fedsim.errors import ModelError
from fedsim.tree import Samples, count, joined, mapped, pieces
from fedsim.types import Batch
from fedsim.values import Vector

Loss = Callable[[Any, Any], Tensor]
"""Per-sample loss: maps what the module returns, and targets ``[B, ...]``, to ``[B]``."""


AT_A_TIME = {"cpu": 256, "cuda": 2048}
"""Samples in a forward pass of an evaluation: on a GPU each pass costs launches."""


class Model:
    """A module, its per-sample loss and an optional penalty, as functions of the flat vector ``[d]`` of its parameters.

    Running statistics of BatchNorm in training mode follow the parameters in the vector. In their coordinates a
    gradient has the new statistics, and a step takes them over: see ``fedsim.engine.descent``.

    Args:
        module: any ``nn.Module`` whose only state is its parameters; see ``fedsim.engine.examine``.
        loss: ``(outputs [B, ...], targets [B, ...]) -> [B]``; one number per sample, not their mean. An ``nn.Module``
            is in eval mode during evaluation, as the model is.
        penalty: differentiable function of the vector, added to every client's objective.
        device: device of the parameters and of all computation.
        dtype: floating-point type of parameters and inputs.
        mixes: in training, an output or a loss depends on the other samples of its minibatch, padding included.
        stacks: gradients of clients at once are those of one after the other.
        numerics: precision of products, and what a GPU does without a deterministic kernel.

    Attributes:
        statistics: the running statistics that are part of the vector, by name.
        learned: mask of the parameters in the vector, bool ``[d]``; None without statistics.
        sharing: which coordinates methods see and send, the others being each client's own; None for all.
        channels_last: convolutions read images in this layout; see ``fedsim.engine.kernels``.
        nondeterministic: operations on a GPU that have no deterministic kernel, and where they are.

    Raises:
        ModelError: the module keeps statistics that cannot be a part of the vector, draws its own random numbers, or
            has parameters without a shape or of another kind (``check_trainable``); or the loss has parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        penalty: Callable[[Vector], Tensor] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mixes: bool = False,
        stacks: bool = True,
        numerics: Numerics = FULL,
    ) -> None:
        refuse_lazy_layers(module)
        check_trainable(module)
        refuse_parameters_of(loss)
        self.module = module.to(device=device, dtype=dtype)
        for layer in module.modules():
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                layer.sparse = False                       # the same gradient, as a part of the vector
        self.loss = loss.to(device=device, dtype=dtype) if isinstance(loss, nn.Module) else loss
        self.penalty, self.device, self.dtype, self.mixes = penalty, torch.device(device), dtype, mixes
        self.numerics, self.nondeterministic = numerics, dict[str, str]()
        if self.device.type == "cuda":
            make_cuda_deterministic(numerics.strict)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}   # frozen ones are never sent
        if not named:
            raise ModelError(f"{type(module).__name__} has no parameters to train; expected some with requires_grad")
        self.parameters, self.statistics = list(named.values()), statistics_of(module)
        if self.statistics and penalty is not None:
            raise ModelError("a penalty is a function of parameters alone; expected a module without live BatchNorm")
        self.names, self._held = [*named, *self.statistics], [*self.parameters, *self.statistics.values()]
        self.shapes = [t.shape for t in self._held]
        self.sizes = [t.numel() for t in self._held]
        self.d = sum(self.sizes)
        self.sharing: Sharing | None = None
        self.learned: Tensor | None = None
        if self.statistics:
            self.learned = torch.arange(self.d, device=self.device) < sum(p.numel() for p in self.parameters)
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self.convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
        whole = len(named) == len(list(module.parameters()))
        self.dense = DenseStack.of(module, loss) if whole and not numerics.bf16 else None
        self.layered = Layered.of(module) if whole and self.dense is None else None
        # under torch.vmap autocast leaves convolutions, and linear layers with a bias, in float32
        self._alone = numerics.bf16 or any(map(_is_alone, module.modules()))
        self.stacks = True
        if not stacks:
            self.one_by_one()
        self.draws: bool | None = None                     # whether it draws random numbers, from the first step on
        self._dropouts, self._draws_elsewhere = dropouts(module), True   # that is, by nothing else
        self.channels_last = self.device.type == "cpu"

    def vector(self) -> Vector:
        """Copy of the module's current parameters and statistics, ``[d]``."""
        return torch.cat([t.detach().reshape(-1) for t in self._held])

    def shared(self) -> Vector:
        """Copy of those current parameters and statistics that methods see: all, if the model is not divided."""
        return self.vector() if self.sharing is None else self.sharing.split(self.vector())[0]

    @property
    def seen(self) -> int:
        """Number of the coordinates that methods see."""
        return self.d if self.sharing is None else self.sharing.s

    def whole(self, x: Vector) -> Vector:
        """The vector ``[d]`` with the shared coordinates ``x``, and each client's initial ones where it has its own."""
        return x if self.sharing is None else self.sharing.whole(x, self.sharing.own)

    @property
    def shared_shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the tensors in the vectors of methods."""
        if self.sharing is None:
            return tuple(self.shapes)
        return tuple(shape for shape, travels in zip(self.shapes, self.sharing.shared, strict=True) if travels)

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Names of those tensors."""
        if self.sharing is None:
            return tuple(self.names)
        return tuple(name for name, travels in zip(self.names, self.sharing.shared, strict=True) if travels)

    def zeros(self) -> Vector:
        """Zeros ``[d]`` that take no memory; not to be written into."""
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.d)

    def number(self, value: float) -> Tensor:
        """A number of the model's type, 0-dim: filled in on the device, not copied there."""
        return torch.full((), value, dtype=self.dtype, device=self.device)

    @property
    def numbers(self) -> np.dtype[Any]:
        """NumPy's name of the model's type."""
        return torch.empty(0, dtype=self.dtype).numpy().dtype

    def load(self, x: Vector) -> nn.Module:
        """Set the module's parameters to views of ``x``, its statistics to copies; return the module."""
        same = self.parameters[0].data_ptr() == x.data_ptr()   # while a step updates x in place
        if not same or self.statistics:
            views = x.detach().split_with_sizes(self.sizes)
            for p, view, shape in zip(self.parameters, views, self.shapes, strict=False):
                p.data = view.view(shape)
            for t, view in zip(self.statistics.values(), views[len(self.parameters) :], strict=True):
                t.copy_(view.view_as(t))                   # the forward pass writes into them
        return self.module

    def losses(self, x: Vector, batch: Batch) -> Tensor:
        """Losses ``[B]`` of one client's batch in training, without the penalty."""
        module, inputs = self.load(x), self._input(batch.x)
        return self._drawn(lambda: self._losses(module, inputs, batch.y), None if batch.key is None else batch.key[0])

    def _losses(self, module: Callable[..., Any], x: Samples, y: Samples) -> Tensor:
        loss = self.numerics.loss(self.loss, self.dtype)
        with self.numerics.forward(self.device):
            return per_sample(loss_of_mixed(loss, called(module, x), y), count(y))

    def _drawn(self, forward: Callable[[], Tensor], keys: Tensor | None) -> Tensor:
        """Run a forward pass in training, with its dropout drawn from ``keys``."""
        if self.draws is False:
            with self.numerics.attention(self.device, draws=False):
                return forward()
        seeded, of_one = Seeded(keys), self.device.type == "cpu" and (keys is None or not keys.dim())
        if of_one and self._dropouts and not self._draws_elsewhere:
            with seeded.layers(self._dropouts):
                return forward()
        attention = self.numerics.attention(self.device, draws=True)
        with seeded, attention, seeded.layers(self._dropouts if of_one else []):
            result = forward()
        self.draws = self.draws or seeded.calls > 0
        if of_one:
            self._draws_elsewhere = seeded.calls > seeded.by_layers
        return result

    def gradient(self, x: Vector, batch: Batch, micro: int | None = None) -> Vector:
        """Gradient ``[d]`` of the mean loss (plus penalty) of one client's batch, ``micro`` samples at a time."""
        if micro is None:
            return torch.cat(self._one_client(x, batch))
        total = torch.zeros_like(x)
        for part, share in micro_batches(batch, micro, 0):
            total += torch.cat(self._one_client(x, part)) * share
        return total

    def _one_client(self, x: Vector, batch: Batch) -> list[Tensor]:
        with torch.enable_grad(), self.numerics.products():
            losses = self.losses(x, batch)
            grads = torch.autograd.grad(_mean(losses, batch.weight), self.parameters, materialize_grads=True)
        flat = [g.reshape(-1) for g in grads] + [t.clone().reshape(-1) for t in self.statistics.values()]
        if self.penalty is None:
            return flat
        extra = torch.func.grad(self.penalty)(x).split_with_sizes(self.sizes)
        return [g + p for g, p in zip(flat, extra, strict=True)]

    def gradients(self, xs: Tensor, batch: Batch, micro: int | None = None) -> Tensor:
        """Gradients ``[c, d]`` of ``c`` clients at ``xs [c, d]``, each on its row of ``batch`` (``[c, B, ...]``)."""
        if len(xs) == 1 and self.dense is None and micro is None:
            return torch.cat(self._one_client(xs[0], self._row(batch, 0))).unsqueeze(0)
        return torch.cat([part for _, part in sorted(self.gradient_parts(xs, batch, micro), key=itemgetter(0))], 1)

    def gradient_parts(self, xs: Tensor, batch: Batch, micro: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield ``gradients`` in parts ``[c, d_p]``, each with its offset in the vector, in any order.

        A part owns its memory, and its columns of ``xs`` are not read after it is yielded.
        """
        if micro is not None:
            total: list[tuple[int, Tensor]] = []           # always in the same order
            for some, share in micro_batches(batch, micro, 1):
                parts = [(offset, part.mul_(share)) for offset, part in self.gradient_parts(xs, some)]
                for (_, sum_), (_, part) in zip(total, parts, strict=bool(total)):
                    sum_ += part
                total = total or parts
            yield from total
            return
        if self.dense is not None and not self.mixes and self.dense.takes(batch.x):
            extra = None if self.penalty is None else torch.vmap(torch.func.grad(self.penalty))(xs)
            for offset, part in self.numerics.each(self.dense.gradients(xs, batch)):
                yield offset, part if extra is None else part.add_(extra[:, offset : offset + part.shape[1]])
            return
        stacked = not self._alone or (self.layered is not None and self.layered.takes(batch.x))
        if len(xs) > 1 and stacked and not (self.mixes and batch.weight is not None):
            try:
                yield from zip(self.offsets, _owned(self._stacked(xs, batch)), strict=True)
                return
            except UnbatchedDrawError:
                self._alone = True
        each = [self._one_client(x, self._row(batch, i)) for i, x in enumerate(xs)]   # as in the loop
        of_all = (torch.stack(gs) if len(gs) > 1 else gs[0].unsqueeze(0) for gs in zip(*each, strict=True))
        yield from zip(self.offsets, _owned(of_all), strict=True)

    def _stacked(self, xs: Tensor, batch: Batch) -> list[Tensor]:
        """Gradients of every parameter, ``[c, d_p]`` each, from ``torch.vmap`` of the module."""
        columns = zip(xs.split_with_sizes(self.sizes, 1), self.shapes, strict=True)
        held = [t.reshape(len(xs), *s).detach() for t, s in columns]
        parts = [t.requires_grad_() for t in held[: len(self.parameters)]]
        statistics = [t.clone(memory_format=torch.contiguous_format) for t in held[len(parts) :]]
        dims, keys = (0, 0, 0, None if batch.weight is None else 0), None if batch.key is None else batch.key[:, 0]
        mean = torch.vmap(self._functional_loss, dims, randomness="error" if self.draws is False else "different")
        if self.layered is not None and self.layered.takes(batch.x):
            mean = partial(self.layered.mean_losses, self.numerics.loss(self.loss, self.dtype))

        def forward() -> Tensor:
            with self.numerics.forward(self.device):
                return mean([*parts, *statistics], batch.x, batch.y, batch.weight).sum()

        with torch.enable_grad(), self.numerics.products():
            total = self._drawn(forward, keys)
            grads = torch.autograd.grad(total, parts, materialize_grads=True)
        written = zip((*grads, *statistics), self.sizes, strict=True)    # the forward pass wrote into statistics
        flat = [t.reshape(len(xs), size) for t, size in written]
        if self.penalty is None:
            return flat
        extra = torch.vmap(torch.func.grad(self.penalty))(xs).split_with_sizes(self.sizes, 1)
        return [g + p for g, p in zip(flat, extra, strict=True)]

    @torch.no_grad()
    def outputs(self, x: Vector, inputs: Samples, batch_size: int | None = None) -> Any:
        """Outputs of the module at ``x`` for ``inputs [N, ...]``, computed ``batch_size`` samples at a time, by default
        ``AT_A_TIME``; see ``fedsim.tree.joined``.
        """
        module, batch_size = self.load(x), batch_size or AT_A_TIME[self.device.type]
        with self.evaluating(), self.numerics.products(), self.numerics.forward(self.device):
            parts = list(pieces(inputs, batch_size))
            outputs = [self.numerics.outputs(called(module, self._input(part)), self.dtype) for part in parts]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return joined(outputs, [count(part) for part in parts])

    @torch.no_grad()
    def moments(self, x: Vector, inputs: Samples, layers: Sequence[str]) -> Tensor:
        """Second moments of the inputs ``h [k]`` of some layers at ``x``: for each the mean of ``h h^T`` over samples
        and positions, flattened and joined, ``[sum k^2]``.

        Raises:
            ModelError: one of the layers takes no tensor, or is not called.
        """
        module, total, seen = self.load(x), dict.fromkeys(layers, torch.zeros(())), dict.fromkeys(layers, 0)

        def add(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
            h = given[0].flatten(0, -2)
            total[name], seen[name] = total[name] + h.T @ h, seen[name] + len(h)

        hooks = [module.get_submodule(name).register_forward_pre_hook(partial(add, name)) for name in layers]
        try:
            with self.evaluating():
                for part in pieces(inputs, AT_A_TIME[self.device.type]):
                    called(module, self._input(part))
        finally:
            for hook in hooks:
                hook.remove()
        if idle := [name for name in layers if not seen[name]]:
            raise ModelError(f"layer {idle[0]} of {type(module).__name__} was not called; expected one that is used")
        return torch.cat([(total[name] / seen[name]).flatten() for name in layers])

    def all_moments(self, xs: Tensor, batches: Iterable[Batch], layers: Sequence[str]) -> Tensor:
        """``moments`` of several clients ``[c, sum k^2]``, each at its row of ``xs [c, d]``."""
        return torch.stack([self.moments(x, own.x, layers) for x, own in zip(xs, batches, strict=True)])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have module and loss in eval mode, and then back in the modes in which they were."""
        parts = [part for part in (self.module, self.loss) if isinstance(part, nn.Module)]
        trained = [layer for part in parts for layer in part.modules() if layer.training]
        for part in parts if trained else ():              # to set modes takes as long as a small model's outputs
            part.eval()
        try:
            yield
        finally:
            for layer in trained:
                layer.training = True

    def _row(self, batch: Batch, i: int) -> Batch:
        """Minibatch of the i-th client of a block, without its padding if that would change the gradient."""
        row: Batch = mapped(itemgetter(i), batch)
        if row.weight is None or not self.mixes:
            return row
        cut: Batch = mapped(itemgetter(row.weight > 0), row)
        return cut._replace(weight=None)

    def one_by_one(self) -> None:
        """Have clients' gradients computed one by one from now on, as in the loop."""
        self.dense, self.layered, self._alone, self.stacks = None, None, True, False

    def _functional_loss(self, parts: list[Tensor], x: Samples, y: Samples, weight: Tensor | None) -> Tensor:
        named = dict(zip(self.names, parts, strict=True))

        def forward(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.module, named, args, kwargs)

        return _mean(self._losses(forward, x, y), weight)

    def _input(self, x: Samples) -> Samples:
        """Convert images to channels-last, in most cases the fastest layout of oneDNN's convolutions and of pooling."""
        return mapped(_channels_last, x) if self.convolutional and self.channels_last else x


def called(module: Callable[..., Any], x: Samples) -> Any:
    """Outputs of a module: the entries of a dict are its keyword arguments, those of a tuple its arguments."""
    if isinstance(x, dict):
        return module(**x)
    return module(*x) if isinstance(x, tuple) else module(x)


def _is_alone(layer: nn.Module) -> bool:
    """Whether a layer is one that torch.vmap cannot batch, whose row for padding it would train, or whose hooks see
    gradients.
    """
    padded = isinstance(layer, nn.Embedding) and layer.padding_idx is not None
    return padded or isinstance(layer, nn.RNNBase) or bool(layer._backward_hooks or layer._backward_pre_hooks)


def _channels_last(x: Tensor) -> Tensor:
    if x.dim() != 4:
        return x
    if x.shape[1] == 1:                                    # ambiguous for one channel: set strides
        return x.contiguous().as_strided(x.shape, (x.shape[2] * x.shape[3], 1, x.shape[3], 1))
    return x.contiguous(memory_format=torch.channels_last)


def _owned(parts: Iterable[Tensor]) -> list[Tensor]:
    """Copy parts that share memory, as autograd may return: the gradients of ``a + b`` are one tensor."""
    own, met = list[Tensor](), set[int]()
    for part in parts:
        shared = part.data_ptr() in met or not part.is_contiguous()
        own.append(part.clone(memory_format=torch.contiguous_format) if shared else part)
        met.add(own[-1].data_ptr())
    return own


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses.mean() if weight is None else (losses * weight).sum() / weight.sum()
