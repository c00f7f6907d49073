"""Examination of a user's module and loss on real samples, before anything is trained.

The engine trains the parameters of a module and averages, charges, saves and restores these alone; it calls the module
as often, and in such an order, as backend and blocks want it; and it puts samples together as it sees fit. So a result
has a meaning only if the module has no other state, and if a sample's output does not depend on the samples beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from fedsim.data import Split
from fedsim.engine.linear_stack import per_sample
from fedsim.engine.model import Model
from fedsim.engine.purity import generator_states
from fedsim.engine.snapshot import Snapshot, alike
from fedsim.errors import ModelError
from fedsim.types import Batch
from fedsim.values import Vector

SAMPLES = 4
"""Samples that a model is tried on."""


def examine(model: Model, samples: Split) -> None:
    """Try a model on some of the samples, and set ``mixes``; the rest of it is left as it was.

    Raises:
        ModelError: module and loss do not fit the samples, keep state besides the parameters, draw random numbers, or
            mix samples in evaluation.
    """
    initial, before = model.vector(), snapshot(model)
    rows = _rows(samples.y)
    x, y, _ = Split(samples.x[rows], samples.y[rows]).to(model.device, model.dtype)
    trial = initial + _noise(model.d).to(initial)          # some initial values hide things: a last layer of zeros
    try:
        _check_fit(model, x, y)
        _refuse_state(model, trial, x, y, before)
        before.restore()
        _refuse_mixing_in_evaluation(model, trial, x, y)
        model.mixes = _mixes(model, trial, x, y)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name_of(model.module)} or its loss raised {type(error).__name__} on {len(x)} samples of shape"
            f" {list(x.shape[1:])}: {error}"
        ) from error
    finally:
        before.restore()
        model.load(initial)


def give_shapes(module: nn.Module, x: Tensor) -> None:
    """Give lazy layers their shapes and initial values, by calling the module on samples ``x [B, ...]``.

    Raises:
        ModelError: it does not take such samples.
    """
    if not any(nn.parameter.is_lazy(p) for p in module.parameters()):
        return
    try:
        with torch.no_grad():
            module(x.to(torch.get_default_dtype()) if x.is_floating_point() else x)
    except Exception as error:
        raise ModelError(
            f"{name_of(module)} with lazy layers raised {type(error).__name__} on inputs {list(x.shape)}: {error}"
        ) from error


def snapshot(model: Model) -> Snapshot:
    """State of a model besides its trained parameters."""
    return Snapshot({"of the penalty": model.penalty, "of the loss": model.loss, "": model.module})


def name_of(fn: Callable[..., object]) -> str:
    """Name of a module or loss in errors."""
    return type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__qualname__", type(fn).__name__)


def _rows(y: Tensor) -> Tensor:
    """Rows of some samples, first that of the largest target, which needs all outputs."""
    first, last = int(y.reshape(len(y), -1).amax(1).argmax()), len(y) - 1
    others = {k * last // (SAMPLES - 1) for k in range(SAMPLES)} - {first}
    return torch.tensor([first, *sorted(others)][:SAMPLES], device=y.device)


def _noise(d: int) -> Tensor:
    numbers = 0.01 * torch.randn(4099, generator=torch.Generator().manual_seed(0))
    return numbers.repeat(d // len(numbers) + 1)[:d]       # repeated: many millions would take their time


def _check_fit(model: Model, x: Tensor, y: Tensor) -> None:
    """Run module and loss on one sample, as in evaluation."""
    try:
        with torch.no_grad(), model.evaluating():
            outputs = model.outputs(model.vector(), x[:1])
            if outputs.shape[:1] != (1,):
                raise ModelError(
                    f"{name_of(model.module)} returned outputs {list(outputs.shape)} for inputs {list(x[:1].shape)};"
                    " expected [1, ...], one row for each sample (a squeeze() without an axis drops this one)"
                )
            per_sample(model.loss(outputs, y[:1]), 1)
    except ModelError:
        raise
    except Exception as error:
        raise _misfit(model, x, y, error) from error


def _misfit(model: Model, x: Tensor, y: Tensor, error: Exception) -> ModelError:
    target = f"{y[0].item():g}" if y[0].numel() == 1 else f"{list(y.shape[1:])}"
    tokens = "" if x.is_floating_point() else (
        ". Integer inputs are taken for tokens of text; pass features as x.astype('float32')"
    )
    return ModelError(
        f"{name_of(model.module)} with its loss cannot take an input of shape {list(x.shape[1:])} with the target"
        f" {target} ({type(error).__name__}: {error}); expected a model that takes inputs [B,"
        f" {str(list(x.shape[1:]))[1:]} and has an output for each class{tokens}"
    )


def _refuse_state(model: Model, v: Vector, x: Tensor, y: Tensor, before: Snapshot) -> None:
    """Compare what training on a minibatch gives and leaves behind, alone and after another minibatch."""
    half = (len(x) + 1) // 2
    batches = Batch(x[:half], y[:half]), Batch(x[-half:], y[-half:])   # of equal shapes, by which a cache may go
    tolerance, kept = _tolerance(model), v.clone()
    alone, after = [], []
    for one, other in (batches, batches[::-1]):
        before.restore()
        alone.append(_train(model, v, one))
        after.append(_train(model, v, other))
    if not torch.equal(kept, v):
        raise ModelError(
            f"{name_of(model.module)} writes into its parameters in forward; expected new tensors: w.clamp(0) for"
            " w.clamp_(0)"
        )
    lasting = model.module.state_dict(keep_vars=True)      # these may not change, others are free to hold the last call
    moved = {name for _, left in alone + after for name in before.differences(left) if name in lasting}
    for (given, left), (also_given, also_left) in zip(alone, after[::-1], strict=True):
        moved |= set(left.differences(also_left, tolerance))
        if not moved and not all(map(partial(alike, tolerance=tolerance), given, also_given)):
            raise ModelError(
                f"what {name_of(model.module)} or its loss gives for a minibatch depends on those before, as by a"
                " variable or attribute set in forward; expected a function of parameters and minibatch alone"
            )
    if moved:
        raise ModelError(
            f"{name_of(model.module)} keeps state besides its parameters: {_listed(moved, lasting)} changed during a"
            " minibatch. Only parameters are averaged, charged and saved, so results would depend on the order in which"
            " clients run. Compute it anew in every forward pass, make it a parameter, or freeze it, as layer.eval()"
            " does for most layers of PyTorch"
        )


def _train(model: Model, v: Vector, batch: Batch) -> tuple[tuple[Vector, Tensor], Snapshot]:
    """Gradient on a minibatch and then outputs in evaluation, and the state that these leave behind."""
    drawn = generator_states()
    given = model.gradient(v, batch), model.outputs(v, batch.x[:1])
    if generator_states() != drawn:
        raise ModelError(
            f"{name_of(model.module)} or its loss draws from the global generator of PyTorch or NumPy, which no seed of"
            " a run controls; leave the random part out"
        )
    return given, snapshot(model)


def _refuse_mixing_in_evaluation(model: Model, v: Vector, x: Tensor, y: Tensor) -> None:
    """Compare the outputs and losses of samples with those of each sample alone."""
    tolerance = _tolerance(model)
    outputs, alone = model.outputs(v, x), model.outputs(v, x, batch_size=1)
    if not alike(outputs, alone, tolerance):
        raise ModelError(
            f"{name_of(model.module)} mixes the samples of a batch in evaluation: the output for a sample depends on"
            " the others beside it. Let axis 0 be the samples (batch_first=True in attention and recurrent layers),"
            " normalise over features (nn.LayerNorm, nn.GroupNorm), and mix samples only `if self.training`"
        )
    with torch.no_grad(), model.evaluating():
        losses = model.loss(outputs, y)
        each = [per_sample(model.loss(outputs[i : i + 1], y[i : i + 1]), 1) for i in range(len(y))]
    if not alike(losses, torch.cat(each), tolerance):
        raise ModelError(
            f"the loss {name_of(model.loss)} mixes the samples of a batch in evaluation: the loss of a sample depends"
            " on the others beside it. A loss that mixes them in training is an nn.Module that does so"
            " `if self.training` and else gives each sample its own"
        )


def _mixes(model: Model, v: Vector, x: Tensor, y: Tensor) -> bool:
    """Compare, in training, the loss of each sample with that of the sample alone, and gradients with and without a row
    of padding.
    """
    if len(y) == 1:
        return False
    try:
        with torch.no_grad():
            alone = torch.cat([model.losses(v, Batch(x[i : i + 1], y[i : i + 1])) for i in range(len(y))])
    except Exception:                                      # as of a standard deviation, which needs several
        return True
    with torch.no_grad():
        together = model.losses(v, Batch(x, y))
    weight = torch.ones_like(together)
    weight[-1] = 0
    padded, cut = model.gradient(v, Batch(x, y, weight)), model.gradient(v, Batch(x[:-1], y[:-1]))
    return not (alike(together, alone, _tolerance(model)) and alike(padded, cut, _tolerance(model)))


def _tolerance(model: Model) -> float:
    """Largest relative difference by rounding."""
    eps: float = torch.finfo(model.dtype).eps
    return math.sqrt(eps)


def _listed(names: Iterable[str], lasting: Container[str]) -> str:
    tops = sorted({name.partition("[")[0] for name in names})
    shown = [f"{'buffer' if name in lasting else 'attribute'} {name}" for name in tops[:3]]
    return ", ".join(shown) + (f" and {len(tops) - 3} more" if len(tops) > 3 else "")
