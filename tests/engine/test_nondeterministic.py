"""Operations without a deterministic kernel: found by PyTorch's own warning, named with their layer, said or refused.

``put_`` has none on any device, so that no GPU is needed to hear PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.engine import nondeterministic
from fedsim.engine.model import Model
from fedsim.engine.numerics import Numerics
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy
from fedsim.types import Batch

CUDA = torch.device("cuda")


def put(x: Tensor) -> Tensor:
    """The same numbers, by an operation that has no deterministic kernel."""
    return x.clone().put_(torch.zeros(1, dtype=torch.int64, device=x.device), x.detach().flatten()[:1])


class Putting(torch.autograd.Function):
    """Deterministic forward, not backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return put(g[0])


def backward(x: Tensor) -> Tensor:
    found: Tensor = Putting.apply(x)  # type: ignore[no-untyped-call]
    return found


class Applied(nn.Module):
    """A function as a layer, in the modes of ``when``."""

    def __init__(self, fn: Callable[[Tensor], Tensor], when: tuple[bool, ...] = (True, False)) -> None:
        super().__init__()
        self.fn, self.when = fn, when

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) if self.training in self.when else x


class Whole(nn.Module):
    """The operation is of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return put(self.inner(x))


class Named(nn.Module):
    """A layer is given tensors by name, within a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 3), Keyed()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(given={"x": self.inner(x)}, times=2)
        return out


class Keyed(nn.Module):
    def forward(self, given: dict[str, Tensor], times: int) -> Tensor:
        return backward(given["x"]) * times


def of_loss(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(backward(outputs), y)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), *layers)


CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, str]]] = {
    "none": (lambda: chain(nn.Dropout(0.5)), cross_entropy, {}),
    "forward": (lambda: chain(Applied(put)), cross_entropy, {"put_": "layer 1 (Applied)"}),
    "backward": (lambda: chain(nn.ReLU(), Applied(backward)), cross_entropy, {"put_": "layer 2 (Applied)"}),
    "inner": (lambda: chain(nn.Sequential(Applied(backward))), cross_entropy, {"put_": "layer 1.0 (Applied)"}),
    "evaluation": (lambda: chain(Applied(put, (False,))), cross_entropy, {"put_": "layer 1 (Applied)"}),
    "loss": (chain, of_loss, {"put_": "the loss of_loss"}),
    "model": (Whole, cross_entropy, {"put_": "Whole"}),
    "named": (Named, cross_entropy, {"put_": "layer last (Keyed)"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_layer_is_found(name: str, precision: str) -> None:
    make, loss, expected = CASES[name]
    torch.manual_seed(0)
    model = Model(make(), loss, numerics=Numerics(precision))
    x = model.vector()
    batch = Batch(torch.randn(4, 6), torch.randint(0, 3, (4,)), None, torch.zeros(4, dtype=torch.int64))
    drawn = torch.get_rng_state()
    assert nondeterministic.find(model, x, batch) == expected
    assert torch.equal(torch.get_rng_state(), drawn) and not torch.are_deterministic_algorithms_enabled()
    assert not model.module._forward_pre_hooks and torch.equal(model.vector(), x)
    assert all(p.grad is None for p in model.parameters)


@pytest.fixture
def modes() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("modes")
@pytest.mark.parametrize("strict", [False, True])
def test_a_trial_neither_warns_nor_fails_on_a_gpu(strict: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    with nondeterministic.tolerated(CUDA):
        put(torch.zeros(2))
    with pytest.raises(RuntimeError if strict else UserWarning, match="put_ does not have a deterministic impl"):
        put(torch.zeros(2))


@pytest.mark.usefixtures("modes")
def test_settings_of_a_cpu_are_the_users() -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError), nondeterministic.tolerated(torch.device("cpu")):
        put(torch.zeros(2))
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("modes")
def test_what_has_been_said_is_not_said_again_and_other_operations_are() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    (remark,) = nondeterministic.remarks({"put_": "layer 1 (Applied)"})
    assert remark.startswith("layer 1 (Applied) computes put_, of which PyTorch has no deterministic kernel on CUDA")
    put(torch.zeros(2))
    with pytest.raises(UserWarning, match="other does not have"):
        warnings.warn("other does not have a deterministic implementation, but", stacklevel=1)


def test_a_refusal_names_the_layer_and_ways_out() -> None:
    nondeterministic.refuse({})
    with pytest.raises(ModelError, match=r"layer 1 \(Applied\) computes put_.*another layer.*--device cpu.*istic warn"):
        nondeterministic.refuse({"put_": "layer 1 (Applied)"})
