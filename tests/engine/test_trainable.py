"""What training as a flat vector would change without a word is refused by name, before a copy of a module loses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.controller.model import _copied
from fedsim.data import Split
from fedsim.engine.examine import examine
from fedsim.engine.model import Model
from fedsim.errors import ModelError
from fedsim.models.losses import cross_entropy
from fedsim.types import Batch

SAMPLES = Split(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)


class Net(nn.Module):
    """Two layers, and what ``change`` does to them."""

    def __init__(self, change: Callable[[Any], object] = lambda net: None) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.outside: list[Any] = []
        change(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        for part in self.outside:
            h = part(h)
        out: Tensor = self.last(h)
        return out


def masked(net: Net) -> None:
    net.first.weight.register_hook(lambda g: 0 * g)


def accumulated(net: Net) -> None:
    net.first.weight.register_post_accumulate_grad_hook(lambda p: None)


def parted(net: Net) -> None:
    net.second.weight = nn.Parameter(net.first.weight)


def by_data(net: Net) -> None:
    net.second.weight.data = net.first.weight.data.T


def with_buffer(net: Net) -> None:
    net.register_buffer("start", net.first.weight.data)


def scripted(net: Net) -> None:
    net.second = torch.jit.script(net.second)


def complex_valued(net: Net) -> None:
    net.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (masked, "parameter 'first.weight' has a gradient hook"),
        (accumulated, "parameter 'first.weight' has a gradient hook"),
        (parted, "'first.weight' and 'second.weight' have their memory in common"),
        (by_data, "'first.weight' and 'second.weight' have their memory in common"),
        (with_buffer, "'first.weight' and 'start' have their memory in common"),
        (scripted, "layer 'second' is of torch.jit"),
        (complex_valued, "parameter 'phase' is complex"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("make", [lambda net: Model(net, cross_entropy), lambda net: _copied(net, "model")])
def test_parameters_of_which_a_copy_loses_something(change: Any, message: str, make: Any) -> None:
    with pytest.raises(ModelError, match=message):
        make(Net(change))


def tied(net: Net) -> None:
    net.second.weight = net.first.weight


def frozen_alike(net: Net) -> None:
    for layer in (net.first, net.second):
        layer.weight = nn.Parameter(net.last.bias.new_ones(6, 6), requires_grad=False)
    net.second.weight.data = net.first.weight.data


def columns_of_one(net: Net) -> None:
    whole = torch.ones(6, 12)
    net.first.weight, net.second.weight = nn.Parameter(whole[:, :6]), nn.Parameter(whole[:, 6:])


def empty(net: Net) -> None:
    net.none, net.nothing = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0, 3))


@pytest.mark.parametrize("change", [tied, frozen_alike, columns_of_one, empty])
def test_other_modules_train_in_stacks_as_one_by_one(change: Any) -> None:
    torch.manual_seed(0)
    model = Model(Net(change), cross_entropy, dtype=torch.float64)
    examine(model, SAMPLES)
    some = SAMPLES._replace(x=SAMPLES.x.double())
    x, batch = model.vector(), (some.x.unflatten(0, (2, 6)), some.y.unflatten(0, (2, 6)))
    each = torch.stack([model.gradient(x, Batch(*(t[i] for t in batch))) for i in range(2)])
    torch.testing.assert_close(model.gradients(torch.stack([x, x]), Batch(*batch)), each, rtol=1e-12, atol=1e-12)


def unregistered(net: Net) -> None:
    net.outside = [nn.Linear(6, 6)]


def constant(net: Net) -> None:
    net.outside = [nn.Linear(6, 6).requires_grad_(False)]


def slopes(net: Net) -> None:
    """Derivatives with respect to an activation, which autograd knows as a leaf."""

    def slope(h: Tensor) -> Tensor:
        with torch.enable_grad():
            at = h.detach().requires_grad_()
            (g,) = torch.autograd.grad(at.sin().sum(), at, create_graph=True)
        return h + g

    net.outside = [slope]


def test_trainable_tensors_that_are_no_parameters() -> None:
    with pytest.raises(ModelError, match=r"Net or its loss computes with trainable tensors of shape \[6, 6\], \[6\]"):
        examine(Model(Net(unregistered), cross_entropy), SAMPLES)
    mine = Net()

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") + mine.last.weight.square().sum()

    with pytest.raises(ModelError, match=r"computes with trainable tensors of shape \[3, 6\] that are no parameters"):
        examine(Model(Net(), penalised), SAMPLES)
    examine(Model(mine, penalised), SAMPLES)               # the module itself, and no copy of it
    for change in (constant, slopes):
        examine(Model(Net(change), cross_entropy), SAMPLES)
