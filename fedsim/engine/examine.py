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

COARSE = 0.05
"""Relative difference beyond rounding in half precision."""


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
    """Compare what training on a minibatch gives and leaves behind, first and after another minibatch."""
    half, tolerance, sum_of = (len(x) + 1) // 2, _tolerance(model), partial(torch.sum, dtype=torch.float64)
    batches = Batch(x[:half], y[:half]), Batch(x[-half:], y[-half:])   # of equal shapes, by which a cache may go
    lasting = model.module.state_dict(keep_vars=True)      # these may not change; others may hold the last call
    total, moved, equal = sum_of(v), set[str](), True
    seen: dict[int, tuple[tuple[Vector, Tensor], Snapshot]] = {}
    for order in ((0, 1), (1, 0)):
        before.restore()
        for i in order:
            given, left = _train(model, v, batches[i])
            moved |= {name for name in before.differences(left) if name in lasting}
            if i in seen:
                other, also_left = seen.pop(i)
                moved |= set(left.differences(also_left, tolerance))
                equal &= all(map(partial(alike, tolerance=tolerance), given, other))
            else:
                seen[i] = given, left
    if not torch.equal(sum_of(v), total):
        raise ModelError(
            f"{name_of(model.module)} writes into its parameters in forward; expected new tensors: w.clamp(0) for"
            " w.clamp_(0)"
        )
    if moved:
        raise ModelError(
            f"{name_of(model.module)} keeps state besides its parameters: {_listed(moved, lasting)} changed during a"
            " minibatch. Only parameters are averaged, charged and saved, so results would depend on the order in which"
            " clients run. Compute it anew in every forward pass, make it a parameter, or freeze it, as layer.eval()"
            " does for most layers of PyTorch"
        )
    if not equal:
        raise ModelError(
            f"what {name_of(model.module)} or its loss gives for a minibatch depends on those before, as by a variable"
            " or attribute set in forward; expected a function of parameters and minibatch alone"
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
    if _mixed(partial(model.outputs, v), _tolerance(model), x):
        raise ModelError(
            f"{name_of(model.module)} mixes the samples of a batch in evaluation: the output for a sample depends on"
            " the others beside it. Let axis 0 be the samples (batch_first=True in attention and recurrent layers),"
            " normalise over features (nn.LayerNorm, nn.GroupNorm), and mix samples only `if self.training`"
        )
    outputs = model.outputs(v, x)
    with torch.no_grad(), model.evaluating():
        mixed = _mixed(model.loss, _tolerance(model), outputs, y)
    if mixed:
        raise ModelError(
            f"the loss {name_of(model.loss)} mixes the samples of a batch in evaluation: the loss of a sample depends"
            " on the others beside it. A loss that mixes them in training is an nn.Module that does so"
            " `if self.training` and else gives each sample its own"
        )


def _mixes(model: Model, v: Vector, x: Tensor, y: Tensor) -> bool:
    """Compare losses and gradients in training: a row of padding may mix in gradients alone."""
    with torch.no_grad():
        if _mixed(lambda x, y: model.losses(v, Batch(x, y)), _tolerance(model), x, y):
            return True
    weight = torch.ones(len(x), dtype=model.dtype, device=model.device)
    weight[1:][-1:] = 0                                    # unless there is but one sample
    a, b = (model.gradient(v, Batch(x[rows], y[rows], weight)) for rows in ([*range(len(x))], [*range(len(x) - 1), 0]))
    return not alike(a, b, _tolerance(model))


def _mixed(f: Callable[..., Tensor], tolerance: float, *samples: Tensor) -> bool:
    """Return whether a row of ``f(*samples)`` changes with the samples beside it, or with their number.

    Others of the same number leave the rounding as it is; another number may change it, in half precision by a percent.
    """
    n, together = len(samples[0]), f(*samples)
    half = n // 2
    for rows in (range(half), range(half, n)) if half else ():
        beside = [i if i in rows else rows[i % len(rows)] for i in range(n)]
        for chosen, bound in ((beside, tolerance), (rows, max(tolerance, COARSE))):
            found = f(*(part[chosen] for part in samples))
            if not alike(together[rows], found[rows] if chosen is beside else found, bound):
                return True
    return False


def _tolerance(model: Model) -> float:
    """Largest relative difference by rounding."""
    eps: float = torch.finfo(model.dtype).eps
    return math.sqrt(eps)


def _listed(names: Iterable[str], lasting: Container[str]) -> str:
    tops = sorted({name.partition("[")[0] for name in names})
    shown = [f"{'buffer' if name in lasting else 'attribute'} {name}" for name in tops[:3]]
    return ", ".join(shown) + (f" and {len(tops) - 3} more" if len(tops) > 3 else "")
