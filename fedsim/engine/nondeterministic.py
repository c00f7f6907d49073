"""Operations of a user's model without a deterministic kernel, and the layers that they are in.

PyTorch names such an operation in a warning when it launches it, most often in a backward pass, but not the layer. So a
gradient and an evaluation are computed once, and where there is such a warning, each layer once more by itself.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedsim.engine.model import Model, called
from fedsim.errors import ModelError
from fedsim.tree import converted, tensors_of
from fedsim.types import Batch
from fedsim.values import Vector

WARNING = re.compile(r"^(\S+) does not have a deterministic implementation")
"""How PyTorch's warning begins, and its error where such operations are refused."""


def find(model: Model, x: Vector, batch: Batch) -> dict[str, str]:
    """Operations without a deterministic kernel in a gradient at ``x [d]`` and in an evaluation: {operation: where}.

    State that the model has besides its parameters may change.
    """

    def evaluate() -> None:
        with torch.no_grad():
            model.loss(model.outputs(x, batch.x), batch.y)

    found: dict[str, str] = {}
    for once, mode in ((partial(model.gradient, x, batch), contextlib.nullcontext), (evaluate, model.evaluating)):
        with mode():
            if new := _heard(once) - found.keys():
                found |= _places(model, x, batch, new)
    return found


def refuse(found: dict[str, str]) -> None:
    """Refuse operations that ``find`` found.

    Raises:
        ModelError: there are some.
    """
    for operation, where in found.items():
        raise ModelError(
            f"{where} computes {operation}, of which PyTorch has no deterministic kernel on CUDA, and deterministic is"
            " strict: two runs of a seed would differ. Use another layer there, --device cpu, or --deterministic warn,"
            " by which the run only says so"
        )


def remarks(found: dict[str, str]) -> list[str]:
    """Messages on operations that ``find`` found; PyTorch's own warnings of these end."""
    for operation in found:
        warnings.filterwarnings("ignore", f"{re.escape(operation)} does not have a deterministic implementation")
    return [
        f"{where} computes {operation}, of which PyTorch has no deterministic kernel on CUDA: two runs of a seed differ"
        " in rounding; --deterministic strict refuses that"
        for operation, where in found.items()
    ]


@contextlib.contextmanager
def tolerated(device: torch.device) -> Iterator[None]:
    """Have such operations on a GPU neither refused nor warned of in this context, so that a model can be tried."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings(), _warned_of():
        warnings.filterwarnings("ignore", r"\S+ does not have a deterministic implementation")
        yield


@contextlib.contextmanager
def _warned_of() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _heard(once: Callable[[], object]) -> set[str]:
    """Operations that PyTorch warns of when ``once`` is called."""
    with warnings.catch_warnings(record=True) as heard, _warned_of():
        warnings.simplefilter("always")
        once()
    return {match[1] for warning in heard if (match := WARNING.match(str(warning.message)))}


def _places(model: Model, x: Vector, batch: Batch, operations: Collection[str]) -> dict[str, str]:
    """Where some operations are: the innermost layer that computes them by itself, the loss, or else the model."""
    calls: list[_Call] = []

    def note(name: str, layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        where = f"layer {name} ({type(layer).__name__})"
        calls.append(_Call(where, name.count("."), layer, *converted(_leaf, (given, named))))

    module, layers = model.load(x), dict(model.module.named_modules())
    hooks = [at.register_forward_pre_hook(partial(note, name), with_kwargs=True) for name, at in layers.items() if name]
    try:
        outputs = called(module, batch.x)
    finally:
        for hook in hooks:
            hook.remove()
    calls.sort(key=lambda call: -call.depth)
    loss = f"the loss {getattr(model.loss, '__qualname__', type(model.loss).__name__)}"
    calls.append(_Call(loss, 0, model.loss, (converted(_leaf, outputs), batch.y), {}))
    places: dict[str, str] = {}
    for call in calls:
        with contextlib.suppress(Exception):               # it needs what was before it
            places = {**dict.fromkeys(_heard(partial(call.run, model)), call.where), **places}
    return {operation: places.get(operation, type(module).__name__) for operation in sorted(operations)}


class _Call(NamedTuple):
    """A call of a layer, with copies of what it was given."""

    where: str
    depth: int
    code: Callable[..., Any]
    given: tuple[Any, ...]
    named: dict[str, Any]

    def run(self, model: Model) -> None:
        """Compute outputs, and the gradient of their sum."""
        numerics, device = model.numerics, model.device
        with torch.enable_grad(), torch.random.fork_rng(_generators(device)), numerics.products():
            with numerics.forward(device):
                outputs = tensors_of(self.code(*self.given, **self.named))
            sums = [t.sum() for t in outputs if t.requires_grad]
            leaves = [t for t in tensors_of((self.given, self.named)) if t.requires_grad]
            if sums:
                torch.autograd.grad(sums, [*leaves, *model.parameters], allow_unused=True)


def _generators(device: torch.device) -> list[torch.device]:
    """Devices whose generators a layer may draw from."""
    used = device.type == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [device] * used


def _leaf(t: Tensor) -> Tensor:
    """A copy, of which there is a gradient if it is of real numbers."""
    return t.detach().clone().requires_grad_(t.is_floating_point())
