"""Examination of a user's module and loss on real samples, before anything is trained.

The engine trains the parameters of a module and averages, charges, saves and restores these alone; it calls the module
as often, and in such an order, as backend and blocks want it; and it puts samples together as it sees fit. So a result
has a meaning only if the module has no other state, and if a sample's output does not depend on the samples beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.data import Split
from fedsim.engine import nondeterministic
from fedsim.engine.linear_stack import per_sample
from fedsim.engine.model import Model, called
from fedsim.engine.numerics import FULL
from fedsim.engine.purity import generator_states, intact
from fedsim.engine.seeded import Undrawn
from fedsim.engine.snapshot import Snapshot, alike
from fedsim.engine.trainable import check_registered
from fedsim.errors import ModelError
from fedsim.tree import Samples, count, flat, mapped, tensors_of, written
from fedsim.types import Batch
from fedsim.values import Vector

SAMPLES = 6
"""Samples that a model is tried on."""

STEP = 4
"""Those of them in two minibatches."""

COARSE = 0.05
"""Relative difference beyond rounding in half precision."""


def examine(model: Model, samples: Split) -> None:
    """Try a model on some of the samples, and set ``mixes`` and ``nondeterministic``; the rest is left as it was.

    Raises:
        ModelError: module and loss do not fit the samples, keep state besides the parameters, compute with other
            trainable tensors, draw random numbers, or mix samples in evaluation.
    """
    initial, before, numerics = model.vector(), snapshot(model), model.numerics
    rows = itemgetter(_rows(samples.y))
    some = samples._replace(x=mapped(rows, samples.x), y=mapped(rows, samples.y), client=None)
    x, y, *_ = some.to(model.device, model.dtype)
    trial = initial + _noise(model.d).to(initial)          # some initial values hide things: a last layer of zeros
    trial = trial if model.learned is None else torch.where(model.learned, trial, initial)   # a variance is positive
    try:
        model.numerics = FULL                              # what mixes, or keeps state, does so in full precision
        _check_fit(model, x, y)
        by_loss = itemgetter(_order(model, trial.clone(), x, y))
        x, y = mapped(by_loss, x), mapped(by_loss, y)
        _refuse_state(model, trial, x, y, before)
        before.restore()
        _refuse_strangers(model, trial, x, y)
        _refuse_mixing_in_evaluation(model, trial, x, y)
        model.mixes = _mixes(model, trial, x, y)
        if not _stacks(model, trial, x, y):
            model.one_by_one()
        model.numerics = numerics
        _check_precision(model, trial, x, y)
        if model.device.type == "cuda":
            model.nondeterministic = nondeterministic.find(model, trial, _batch(x, y))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name_of(model.module)} or its loss raised {type(error).__name__} on {count(y)} samples of shape"
            f" {written(x)}: {error}"
        ) from error
    finally:
        model.numerics = numerics
        before.restore()
        model.load(initial)


def give_shapes(module: nn.Module, x: Samples) -> None:
    """Give lazy layers their shapes and initial values, by calling the module on samples ``x [B, ...]``.

    Raises:
        ModelError: it does not take such samples.
    """
    if not any(nn.parameter.is_lazy(p) for p in module.parameters()):
        return
    try:
        with torch.no_grad():
            dtype = torch.get_default_dtype()
            called(module, mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, x))
    except Exception as error:
        raise ModelError(
            f"{name_of(module)} with lazy layers raised {type(error).__name__} on inputs of shape {written(x)}: {error}"
        ) from error


def snapshot(model: Model) -> Snapshot:
    """State of a model besides its trained parameters."""
    return Snapshot({"of the penalty": model.penalty, "of the loss": model.loss, "": model.module})


def name_of(fn: Callable[..., object]) -> str:
    """Name of a module or loss in errors."""
    fn = getattr(fn, "func", fn)                           # of a functools.partial
    return type(fn).__name__ if isinstance(fn, nn.Module) else getattr(fn, "__qualname__", type(fn).__name__)


def _rows(targets: Samples) -> Tensor:
    """Rows of some samples, first that of the largest target, which needs all outputs."""
    y, *_ = flat(targets)
    first, last = int(y.reshape(-1).argmax()) // y[0].numel(), len(y) - 1
    others = {k * last // (SAMPLES - 1) for k in range(SAMPLES)} - {first}
    return torch.tensor([first, *sorted(others)][:SAMPLES], device=y.device)


def _order(model: Model, v: Vector, x: Samples, y: Samples) -> Tensor:
    """Order from easy to hard samples. The halves then differ most: a loss that keeps the harder half of a minibatch
    takes others beside hard samples than beside easy ones.
    """
    with torch.no_grad(), model.evaluating():
        return model.loss(model.outputs(v, x), y).argsort()


def _noise(d: int) -> Tensor:
    numbers = 0.01 * torch.randn(4099, generator=torch.Generator().manual_seed(0))
    return numbers.repeat(d // len(numbers) + 1)[:d]       # repeated: many millions would take their time


def _check_fit(model: Model, x: Samples, y: Samples) -> None:
    """Run module and loss on one sample, as in evaluation."""
    try:
        with torch.no_grad(), model.evaluating():
            first, target, *_ = Batch(x, y).part(slice(1))
            with intact(name_of(model.module), "its inputs", first):
                called(model.load(model.vector()), first)
            outputs = model.outputs(model.vector(), first)
            if not (tensors := tensors_of(outputs)) or tensors[0].shape[:1] != (1,):
                given = list(tensors[0].shape) if tensors else f"of type {type(outputs).__name__}"
                raise ModelError(
                    f"{name_of(model.module)} returned outputs {given} for one input of shape {written(x)}; expected"
                    " [1, ...], one row for each sample (a squeeze() without an axis drops this one)"
                )
            with intact(f"the loss {name_of(model.loss)}", "outputs or targets", [outputs, target]):
                per_sample(_loss(model, outputs, target), 1)
    except ModelError:
        raise
    except Exception as error:
        raise _misfit(model, x, y, error) from error


def _loss(model: Model, outputs: Any, target: Samples) -> Tensor:
    """Loss of one sample; an error of a user's loss is its own, one of fedsim's tells of outputs that do not fit."""
    try:
        return model.loss(outputs, target)
    except Exception as error:
        if isinstance(error, ModelError) or getattr(model.loss, "__module__", "").startswith("fedsim."):
            raise
        raise ModelError(
            f"the loss {name_of(model.loss)} raised {type(error).__name__} on outputs of shape {_shapes(outputs)} and"
            f" targets of shape {_shapes(target)}: {error}"
        ) from error


def _shapes(given: Any) -> str:
    return " and ".join(str(list(t.shape)) for t in tensors_of(given))


def _misfit(model: Model, x: Samples, y: Samples, error: Exception) -> ModelError:
    target = f"{y[0].item():g}" if isinstance(y, Tensor) and y[0].numel() == 1 else written(y)
    expected = f"inputs [B, {written(x)[1:]} and has an output for each class"
    if not isinstance(x, Tensor):
        expected = "the entries of a dict by name, or those of a tuple in order, and a loss for what it returns"
    elif not x.is_floating_point():
        expected += ". Integer inputs are taken for tokens of text; pass features as x.astype('float32')"
    return ModelError(
        f"{name_of(model.module)} with its loss cannot take an input of shape {written(x)} with the target"
        f" {target} ({type(error).__name__}: {error}); expected a model that takes {expected}"
    )


def _check_precision(model: Model, v: Vector, x: Samples, y: Samples) -> None:
    """Run module and loss under autocast, in training and in evaluation, if that is their precision."""
    if not model.numerics.bf16:
        return
    try:
        model.gradient(v, _batch(x, y))
        model.outputs(v, x)
    except Exception as error:
        raise ModelError(
            f"{name_of(model.module)} or its loss, which works in float32, raised {type(error).__name__} with precision"
            f" bf16: {error}. Leave precision out, or compute that part in float32:"
            " with torch.autocast(x.device.type, enabled=False)"
        ) from error


def _refuse_state(model: Model, v: Vector, x: Samples, y: Samples, before: Snapshot) -> None:
    """Compare what training on a minibatch gives and leaves behind, first and after another minibatch.

    Buffers of a state_dict may not change, unless each call sets them as BatchNorm's; others may hold the last call.
    """
    n, tolerance, sum_of = min(count(y), STEP), _tolerance(model), partial(torch.sum, dtype=torch.float64)
    halves = slice((n + 1) // 2), slice(n // 2, n)         # of equal shapes, by which a cache may go
    batches = [_batch(x, y).part(rows) for rows in halves]
    lasting = model.module.state_dict(keep_vars=True).keys() - model.statistics.keys()
    uncounted = {name.replace("running_mean", "num_batches_tracked") for name in model.statistics}   # nothing reads it
    total, moved, equal = sum_of(v), set[str](), True
    seen: dict[int, tuple[list[Tensor], Snapshot]] = {}
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
    if moved := moved - uncounted:
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


def _refuse_strangers(model: Model, v: Vector, x: Samples, y: Samples) -> None:
    def losses() -> Tensor:
        with torch.enable_grad():
            return model.losses(v, _batch(mapped(torch.clone, x), mapped(torch.clone, y)))

    check_registered(losses, model.parameters, name_of(model.module))


def _train(model: Model, v: Vector, batch: Batch) -> tuple[list[Tensor], Snapshot]:
    """Gradient on a minibatch and then outputs in evaluation, and the state that these leave behind."""
    drawn = generator_states()
    module, loss = name_of(model.module), f"the loss {name_of(model.loss)}"
    with intact(module, "its inputs", batch.x), intact(loss, "its targets", batch.y), Undrawn():  # type: ignore[no-untyped-call]
        g = model.gradient(v, batch)
    given = [g, *tensors_of(model.outputs(v, batch.part(slice(1)).x))]
    if generator_states() != drawn:
        raise ModelError(
            f"{name_of(model.module)} or its loss draws from the global generator of PyTorch or NumPy, which no seed of"
            " a run controls; leave the random part out"
        )
    return given, snapshot(model)


def _refuse_mixing_in_evaluation(model: Model, v: Vector, x: Samples, y: Samples) -> None:
    def evaluated(x: Samples, y: Samples) -> list[Tensor]:
        outputs = model.outputs(v, x)
        return [*tensors_of(outputs), model.loss(outputs, y)]

    with torch.no_grad(), model.evaluating():
        *outputs, losses = _mixed(evaluated, _tolerance(model), x, y)
    if any(outputs):
        raise ModelError(
            f"{name_of(model.module)} mixes the samples of a batch in evaluation: the output for a sample depends on"
            " the others beside it. Let axis 0 be the samples (batch_first=True in attention and recurrent layers),"
            " normalise over features (nn.LayerNorm, nn.GroupNorm), and mix samples only `if self.training`"
        )
    if losses:
        raise ModelError(
            f"the loss {name_of(model.loss)} mixes the samples of a batch in evaluation: the loss of a sample depends"
            " on the others beside it. A loss that mixes them in training is an nn.Module that does so"
            " `if self.training` and else gives each sample its own"
        )


def _mixes(model: Model, v: Vector, x: Samples, y: Samples) -> bool:
    """Compare losses and gradients in training: a row of padding may mix in gradients alone."""
    with torch.no_grad():
        draws = bool(model.draws)
        if any(_mixed(lambda x, y: [model.losses(v, _batch(x, y))], _tolerance(model), x, y, draws=draws)):
            return True
    if count(y) == 1:
        return False
    weight = torch.tensor([1, 0], dtype=model.dtype, device=model.device)
    rows = (itemgetter(chosen) for chosen in ([0, 1], [0, -1 if count(y) > 2 else 0]))
    a, b = (model.gradient(v, _batch(mapped(of, x), mapped(of, y), weight)) for of in rows)
    return not alike(a, b, _tolerance(model))


def _stacks(model: Model, v: Vector, x: Samples, y: Samples) -> bool:
    """Whether gradients of two clients at once are those of one after the other. A ``forward`` that asks for
    ``requires_grad``, as for a hook on an activation, is answered differently in a stack.
    """
    half = max(count(y) // 2, 1)
    parts = [_batch(x, y).part(slice(i, i + half)) for i in (0, count(y) - half)]
    rows = itemgetter(torch.arange(half) + torch.tensor([[0], [count(y) - half]]))
    try:
        together = model.gradients(torch.stack([v, v]), mapped(rows, _batch(x, y)))
    except Exception:                                      # it is told when the model runs in blocks
        return True
    return alike(together, torch.stack([model.gradient(v, part) for part in parts]), _tolerance(model))


def _batch(x: Samples, y: Samples, weight: Tensor | None = None) -> Batch:
    return Batch(x, y, weight, torch.zeros(count(y), dtype=torch.int64, device=flat(y)[0].device))


def _mixed(f: Callable[..., list[Tensor]], tolerance: float, *samples: Samples, draws: bool = False) -> list[bool]:
    """For each tensor of ``f(*samples)``, whether a row changes with the samples beside it or with their number.

    Others of the same number leave the rounding as it is; another number may change it, in half precision by a percent.
    The first rows are drawn for as before, whatever follows them.
    """
    n, together = count(samples[0]), f(*samples)
    half = n // 2
    mixed = [False] * len(together)
    if not half:
        return mixed
    first, second = list(range(half)), list(range(half, n))
    alone = first if draws else second
    for chosen, rows, at, bound in (
        (first + [i % half for i in second], first, first, tolerance),
        ([second[i % len(second)] for i in first] + second, second, second, tolerance),
        (alone, alone, [*range(len(alone))], tolerance if draws else max(tolerance, COARSE)),
    ):
        found = f(*(mapped(itemgetter(chosen), part) for part in samples))
        mixed = [m or not alike(a[rows], b[at], bound) for m, a, b in zip(mixed, together, found, strict=True)]
    return mixed


def _tolerance(model: Model) -> float:
    """Largest relative difference by rounding."""
    eps: float = torch.finfo(model.dtype).eps
    return math.sqrt(eps)


def _listed(names: Iterable[str], lasting: Container[str]) -> str:
    tops = sorted({name.partition("[")[0] for name in names})
    shown = [f"{'buffer' if name in lasting else 'attribute'} {name}" for name in tops[:3]]
    return ", ".join(shown) + (f" and {len(tops) - 3} more" if len(tops) > 3 else "")
