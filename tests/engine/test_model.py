"""A module as a function of a vector: gradients are autograd's, one by one or stacked; unsafe modules are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.engine.model import Model
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy, squared
from fedsim.types import Batch

CLIENTS, B, CLASSES = 4, 6, 3
DOUBLE = torch.float64


def per_sample_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of class scores to the class number: a loss that the engine has never seen."""
    return (outputs.sum(1) - targets).square() + outputs.abs().sum(1)


class Residual(nn.Module):
    """Somebody's own module: no ``Sequential``, a frozen buffer, and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, CLASSES, bias=False)})
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Parameter(torch.ones(2))
        self.shift: Tensor
        self.register_buffer("shift", torch.linspace(0, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs ``[B, 2, 4]`` to logits."""
        h = x.flatten(1) + self.shift
        out: Tensor = self.body["b"](h + self.scale * torch.tanh(self.body["a"](h)))
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2)),
        nn.Conv2d(1, 4, (2, 3)),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class Tripled(nn.Sequential):
    """A sequence that does more than its layers."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return 3 * out


def doubling(layer: nn.Module) -> nn.Module:
    """The layer with a hook that changes what it is given."""
    layer.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    return layer


def after_flatten(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


MODULES: dict[str, tuple[Callable[[], nn.Module], bool]] = {          # and whether the dense stack takes it
    "linear": (lambda: after_flatten(nn.Linear(8, CLASSES)), True),
    "no bias": (lambda: after_flatten(nn.Linear(8, 5, bias=False), nn.ReLU(), nn.Linear(5, CLASSES, bias=False)), True),
    "relu": (lambda: after_flatten(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), True),
    "tanh": (lambda: after_flatten(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, CLASSES)), True),
    "sigmoid": (lambda: after_flatten(nn.Linear(8, 5), nn.Sigmoid(), nn.Linear(5, CLASSES)), True),
    "activation last": (lambda: after_flatten(nn.Linear(8, 5), nn.Linear(5, CLASSES), nn.Tanh()), True),
    "gelu": (lambda: after_flatten(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, CLASSES)), False),
    "layer norm": (lambda: after_flatten(nn.Linear(8, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, CLASSES)), False),
    "two activations": (lambda: after_flatten(nn.Linear(8, 5), nn.Tanh(), nn.ReLU(), nn.Linear(5, CLASSES)), False),
    "own sequence": (lambda: Tripled(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, CLASSES)), False),
    "hook": (lambda: after_flatten(doubling(nn.Linear(8, CLASSES))), False),
    "convolutional": (convolutional, False),
    "own module": (Residual, False),
}
LOSSES: dict[str, Any] = {"cross-entropy": cross_entropy, "unknown": per_sample_mse}


def model(name: str, loss: str = "cross-entropy", **options: Any) -> Model:
    torch.manual_seed(0)
    return Model(MODULES[name][0](), LOSSES[loss], dtype=DOUBLE, **options)


def stack(m: Model, weighted: bool = False) -> tuple[Tensor, Batch]:
    """Vectors ``[c, d]`` and a batch ``[c, B, 2, 4]``, with rows that are padding when ``weighted``."""
    torch.manual_seed(1)
    xs = m.vector() + 0.3 * torch.randn(CLIENTS, m.d, dtype=DOUBLE)
    weight = (torch.arange(B) < torch.tensor([6, 1, 4, 5]).unsqueeze(1)).to(DOUBLE) if weighted else None
    return xs, Batch(torch.randn(CLIENTS, B, 2, 4, dtype=DOUBLE), torch.randint(0, CLASSES, (CLIENTS, B)), weight)


def rows(batch: Batch, i: int) -> Batch:
    """Client i's samples, without padding."""
    real = slice(None) if batch.weight is None else batch.weight[i] > 0
    return Batch(batch.x[i][real], batch.y[i][real])


def autograd(m: Model, x: Tensor, batch: Batch) -> Tensor:
    """By ``backward`` on a module whose parameters hold ``x``."""
    nn.utils.vector_to_parameters(x, m.module.parameters())
    m.module.zero_grad()
    m.loss(m.module(batch.x), batch.y).mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in m.module.parameters()]
    return torch.cat([g.reshape(-1) for g in grads])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODULES)
def test_the_gradient_is_autograds(name: str, loss: str) -> None:
    m, reference = model(name, loss), model(name, loss)
    xs, batch = stack(m)
    got, expected = m.gradient(xs[2], rows(batch, 2)), autograd(reference, xs[2], rows(batch, 2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    assert got.shape == (m.d,) and got.abs().max() > 1e-3 and not got.requires_grad


@pytest.mark.parametrize("weighted", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODULES)
def test_a_stack_of_gradients_is_one_after_the_other(name: str, loss: str, weighted: bool) -> None:
    m = model(name, loss)
    xs, batch = stack(m, weighted)
    kept = xs.clone(), batch.x.clone()
    got = m.gradients(xs, batch)
    one_by_one = torch.stack([m.gradient(xs[i], rows(batch, i)) for i in range(CLIENTS)])
    torch.testing.assert_close(got, one_by_one, rtol=0, atol=1e-13)
    assert torch.equal(kept[0], xs) and torch.equal(kept[1], batch.x)


@pytest.mark.parametrize("name", MODULES)
def test_which_modules_run_as_matrix_products(name: str) -> None:
    assert (model(name).dense is not None) == MODULES[name][1]


@pytest.mark.parametrize("name", ["tanh", "own module"])
def test_a_penalty_is_added_once(name: str) -> None:
    plain, penalised = model(name), model(name, penalty=lambda x: (x**4).sum() / 4)
    xs, batch = stack(plain, weighted=True)
    torch.testing.assert_close(penalised.gradients(xs, batch), plain.gradients(xs, batch) + xs**3, rtol=0, atol=1e-13)
    one = rows(batch, 0)
    torch.testing.assert_close(
        penalised.gradient(xs[0], one), plain.gradient(xs[0], one) + xs[0] ** 3, rtol=0, atol=1e-13
    )


def test_one_output_and_squared_error() -> None:
    m = Model(nn.Linear(4, 1), squared, dtype=DOUBLE)
    xs, a = torch.randn(3, 5, dtype=DOUBLE), torch.randn(3, 7, 4, dtype=DOUBLE)
    got = m.gradients(xs, Batch(a, torch.ones(3, 7, dtype=DOUBLE)))
    for i in range(3):
        residual = a[i] @ xs[i, :4] + xs[i, 4] - 1
        expected = torch.cat([a[i].T @ residual / 7, residual.mean().reshape(1)])
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-14)


def test_vector_and_load_are_each_others_inverse() -> None:
    m = model("own module")
    x = m.vector()
    assert x.shape == (m.d,) and m.d == sum(p.numel() for p in m.module.parameters())
    torch.testing.assert_close(x, nn.utils.parameters_to_vector(m.module.parameters()).detach())
    other = torch.randn_like(x)
    m.load(other)
    assert torch.equal(m.vector(), other)
    m.vector().zero_()
    assert torch.equal(m.vector(), other), "vector() must be a copy"


def test_outputs_in_parts_are_the_modules() -> None:
    m = model("convolutional")
    xs, batch = stack(m)
    inputs = batch.x.flatten(0, 1)
    expected = m.load(xs[0])(inputs)
    for size in (5, 1000):
        got = m.outputs(xs[0], inputs, size)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
        assert not got.requires_grad


def test_a_tied_weight_is_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.tanh(self.a(x)))
            return out

    m = Model(Tied(), cross_entropy, dtype=DOUBLE)
    assert m.d == 16 + 4 + 4
    xs, x, y = torch.randn(3, m.d, dtype=DOUBLE), torch.randn(3, 5, 4, dtype=DOUBLE), torch.randint(0, 4, (3, 5))
    one_by_one = torch.stack([m.gradient(xs[i], Batch(x[i], y[i])) for i in range(3)])
    torch.testing.assert_close(m.gradients(xs, Batch(x, y)), one_by_one, rtol=0, atol=1e-13)


def linear_layers(tied: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """Two layers that share their weight; or layers for every position of a sequence."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    if tied:
        second.weight = first.weight
    positions = () if tied else (2,)
    x, y = torch.randn(3, 5, *positions, 4, dtype=DOUBLE), torch.randint(0, 4, (3, 5, *positions))
    return nn.Sequential(first, nn.Tanh(), second), x, y


@pytest.mark.parametrize("tied", [True, False], ids=["tied linear layers", "linear layers over positions"])
def test_sequential_modules_that_are_no_dense_stack(tied: bool) -> None:
    module, x, y = linear_layers(tied)
    m = Model(module, cross_entropy, dtype=DOUBLE)
    xs = torch.randn(3, m.d, dtype=DOUBLE)
    one_by_one = torch.stack([m.gradient(xs[i], Batch(x[i], y[i])) for i in range(3)])
    torch.testing.assert_close(m.gradients(xs, Batch(x, y)), one_by_one, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "stacked"),
    [("tanh", False), ("tanh", True), ("own module", False), ("own module", True)],
)
def test_a_loss_that_is_no_per_sample_loss(name: str, stacked: bool) -> None:
    m = Model(MODULES[name][0](), F.cross_entropy, dtype=DOUBLE)
    xs, batch = stack(m)
    with pytest.raises(ModelError, match=r"one loss for each sample.*reduction='none'"):
        m.gradients(xs, batch) if stacked else m.gradient(xs[0], rows(batch, 0))


@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stack"])
def test_a_loss_of_one_column_a_sample(stacked: bool) -> None:
    """``[B, 1]`` is what mse_loss of a one-output network gives; the engine must not take it on one path only."""
    m = Model(nn.Linear(4, 1), lambda o, t: F.mse_loss(o, t.unsqueeze(1), reduction="none"), dtype=DOUBLE)
    x, y = torch.randn(2, 3, 4, dtype=DOUBLE), torch.randn(2, 3, dtype=DOUBLE)
    with pytest.raises(ModelError, match="one loss for each sample"):
        m.gradients(m.vector().repeat(2, 1), Batch(x, y)) if stacked else m.gradient(m.vector(), Batch(x[0], y[0]))


def test_batch_norm_with_frozen_statistics_stays_frozen() -> None:
    """The error's other way out: in eval mode."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)).double()
    module[1].eval()
    x, y = torch.randn(5, 4, dtype=DOUBLE), torch.randint(0, CLASSES, (5,))
    cross_entropy(module(x), y).mean().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
    m = Model(module, cross_entropy, dtype=DOUBLE)
    m.outputs(m.vector(), x)
    torch.testing.assert_close(m.gradient(m.vector(), Batch(x, y)), expected, rtol=0, atol=1e-14)
    assert not module[1].running_mean.any()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm1d(4, track_running_stats=True), nn.BatchNorm1d(4, momentum=None)],
    ids=["instance", "batch"],
)
def test_other_layers_that_keep_statistics_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ModelError, match=type(layer).__name__):
        Model(nn.ModuleList([nn.Linear(4, 4), layer]), cross_entropy)


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="ReLU has no parameters"):
        Model(nn.ReLU(), cross_entropy)


class AlwaysOn(nn.Dropout):
    """Dropout that stays in training, as some do for samples of an ensemble."""

    def train(self, mode: bool = True) -> AlwaysOn:
        super().train(True)
        return self


def test_evaluation_gives_every_layer_its_mode_back() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), AlwaysOn(0.5), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    model = Model(module, cross_entropy)
    module[1].training = False                             # a layer that never trains
    before = [layer.training for layer in module.modules()]
    for _ in range(2):
        with model.evaluating():
            assert [layer for layer in module.modules() if layer.training] == [module[2]]
            with model.evaluating():
                assert not module.training
            assert not module.training
        assert [layer.training for layer in module.modules()] == before
