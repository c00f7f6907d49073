"""Convolutions of ResNet-18 without the products that only ever meet padding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fedsim.engine.model import Model
from fedsim.models.losses import cross_entropy
from fedsim.models.resnet import BasicBlock, PaddedConv2d
from fedsim.types import Batch

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LAYERS = [(kernel, stride) for kernel in (1, 3, 5, 7) for stride in (1, 2, 3)]
MAPS = [(height, width) for height in (1, 2, 3, 4, 9) for width in (1, 2, 5)]


@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_a_padded_convolution_and_its_gradients_are_pytorchs(kernel: int, stride: int) -> None:
    layer = PaddedConv2d(2, 3, kernel, stride).double()
    for size in MAPS:
        x = torch.randn(4, 2, *size, dtype=torch.float64, requires_grad=True)
        want = F.conv2d(x, layer.weight, stride=stride, padding=kernel // 2)
        got, along = layer(x), torch.randn_like(want)
        torch.testing.assert_close(got, want, **EXACT)
        inputs = [x, layer.weight]
        for mine, plain in zip(*(torch.autograd.grad(y, inputs, along) for y in (got, want)), strict=True):
            torch.testing.assert_close(mine, plain, **EXACT)
        torch.testing.assert_close(layer(x[0]), got[0], **EXACT)   # without a batch


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 3)])
def test_padded_convolutions_of_several_clients_at_once(size: tuple[int, int]) -> None:
    layer = PaddedConv2d(2, 3, 3, 2).double()
    xs = torch.randn(5, 4, 2, *size, dtype=torch.float64)
    weights = torch.randn(5, *layer.weight.shape, dtype=torch.float64)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return out.square().sum()

    got = torch.vmap(torch.func.grad(loss))(weights, xs)
    for mine, weight, x in zip(got, weights, xs, strict=True):
        weight = weight.clone().requires_grad_()
        (want,) = torch.autograd.grad(F.conv2d(x, weight, stride=2, padding=1).square().sum(), weight)
        torch.testing.assert_close(mine, want, **EXACT)


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "share"), [(3, 1, 1, 1 / 9), (3, 2, 2, 4 / 9), (7, 2, 4, 36 / 49)]
)
def test_a_padded_convolution_omits_what_meets_padding_alone(
    kernel: int, stride: int, size: int, share: float
) -> None:
    layer, x = PaddedConv2d(2, 3, kernel, stride), torch.randn(4, 2, size, size)
    flops = []
    for compute in (layer, super(PaddedConv2d, layer).forward):
        with FlopCounterMode(display=False) as counter:
            compute(x).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == pytest.approx(share * flops[1])


def test_blocks_of_resnet18_on_small_maps_are_those_of_plain_convolutions() -> None:
    torch.manual_seed(0)
    blocks = [BasicBlock(2, 4, 2, 1), BasicBlock(4, 4, 1, 1), BasicBlock(4, 8, 2, 1), BasicBlock(8, 8, 1, 1)]
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, PaddedConv2d):
            layer.__class__ = nn.Conv2d
    ours, theirs = (Model(net, cross_entropy, dtype=torch.float64) for net in (network, plain))
    assert (ours.names, ours.shapes) == (theirs.names, theirs.shapes)
    batch = Batch(torch.randn(2, 5, 2, 4, 4, dtype=torch.float64), torch.randint(3, (2, 5)))
    x, own = ours.vector(), Batch(batch.x[1], batch.y[1])
    want = theirs.gradient(x, own)
    assert want.eq(0).sum() >= 5 * 4 * 8 + 8 * 8 * 8 * 3   # 5 of 9 entries on a map of 2x2, 8 of 9 on those of 1x1
    torch.testing.assert_close(ours.outputs(x, own.x), theirs.outputs(x, own.x), **EXACT)
    for got in (ours.gradient(x, own), ours.gradients(x.expand(2, -1), batch)[1]):
        torch.testing.assert_close(got, want, **EXACT)
        assert got[want == 0].eq(0).all()
