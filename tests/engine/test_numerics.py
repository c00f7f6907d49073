"""Precision: what is computed in bfloat16 and TF32, what is not, and that blocks then are the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.data import Split
from fedsim.engine.examine import examine
from fedsim.engine.layered import Layered
from fedsim.engine.model import Model
from fedsim.engine.numerics import FULL, Numerics
from fedsim.errors import ModelError
from fedsim.models import GPT, MLP, CharLSTM, LeNet5
from fedsim.models.losses import cross_entropy
from fedsim.types import Batch

BF16 = Numerics("bf16")
EPS = torch.finfo(torch.bfloat16).eps
CLIENTS, SAMPLES, CLASSES = 3, 6, 4
SEEN: list[Any] = []


class Noting(nn.Module):
    """A linear layer that notes the types of its input, its weight and its output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        SEEN.append((x.dtype, self.inner.weight.dtype, out.dtype))
        return out


class Trees(nn.Module):
    """Outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"one": self.one(x), "two": self.two(x).tanh()}


def of_trees(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    assert {t.dtype for t in outputs.values()} == {torch.float32}
    return cross_entropy(outputs["one"] + outputs["two"], y)


def with_a_product(outputs: Tensor, y: Tensor) -> Tensor:
    """A loss whose own product is in bfloat16 under autocast."""
    scores = outputs @ torch.eye(CLASSES)
    SEEN.append((outputs.dtype, scores.dtype))
    return (scores - F.one_hot(y, CLASSES)).square().sum(1)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Dropout(0.4), nn.Linear(40, CLASSES))


def residual() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.norm(F.gelu(self.first(x)) + x))
            return out

    return Residual()


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def group_norm() -> nn.Module:
    layers = nn.Conv2d(1, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, CLASSES)
    return nn.Sequential(*layers)


FLAT, IMAGES, TEXT = (16,), (1, 28, 28), (12,)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "dense": (lambda: MLP(hidden=(24,)).build(IMAGES, CLASSES), IMAGES, cross_entropy),
    "dropout": (dropout, FLAT, cross_entropy),
    "residual": (residual, FLAT, cross_entropy),
    "own": (lambda: nn.Sequential(Noting(16, CLASSES)), FLAT, with_a_product),
    "convolutional": (lambda: LeNet5().build(IMAGES, CLASSES), IMAGES, cross_entropy),
    "group norm": (group_norm, IMAGES, cross_entropy),
    "batch norm": (batch_norm, FLAT, cross_entropy),
    "recurrent": (lambda: CharLSTM(embedding=4, hidden=8).build(TEXT, CLASSES), TEXT, cross_entropy),
    "attention": (lambda: GPT(width=16, heads=2, layers=1).build(TEXT, CLASSES), TEXT, cross_entropy),
    "trees": (Trees, FLAT, of_trees),
}


def model(name: str, numerics: Numerics) -> Model:
    torch.manual_seed(0)
    make, _, loss = NETWORKS[name]
    return Model(make(), loss, numerics=numerics)


def batch(name: str, ragged: bool = False) -> Batch:
    torch.manual_seed(1)
    shape = NETWORKS[name][1]
    each = CLIENTS, SAMPLES, *shape
    x = torch.randint(0, CLASSES, each) if shape == TEXT else torch.randn(each)
    y = torch.randint(0, CLASSES, each if shape == TEXT else each[:2])
    weight = torch.ones(CLIENTS, SAMPLES)
    weight[0, 4:] = weight[2, 1:] = 0
    key = torch.arange(CLIENTS).unsqueeze(1).expand(CLIENTS, SAMPLES)
    return Batch(x, y, weight if ragged else None, key)


def rows(given: Batch) -> list[Batch]:
    return [Batch(*(None if part is None else part[i] for part in given)) for i in range(CLIENTS)]


def points(m: Model) -> Tensor:
    x = m.vector()
    return torch.stack([x, 1.1 * x, 0.9 * x])


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "ragged"),
    [(name, ragged) for name in NETWORKS for ragged in (False, True) if not ragged or name != "batch norm"],
)
def test_gradients_are_rounded_to_bfloat16_alike_in_loop_and_blocks(name: str, ragged: bool) -> None:
    low, full = model(name, BF16), model(name, FULL)
    given, xs = batch(name, ragged), points(low)
    in_blocks = low.gradients(xs, given)
    in_loop = torch.stack([low.gradient(x, row) for x, row in zip(xs, rows(given), strict=True)])
    assert in_blocks.dtype == in_loop.dtype == torch.float32
    assert gap(in_blocks, in_loop) < EPS / 2
    exact = full.gradients(xs, given)
    assert EPS / 100 < gap(in_blocks, exact) < 10 * EPS      # rounded, and right
    assert torch.equal(in_blocks, low.gradients(xs, given))


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_rounded_too_and_its_outputs_have_the_type_of_the_model(name: str) -> None:
    x = batch(name).x[0]
    given, exact = (model(name, numerics).outputs(model(name, FULL).vector(), x) for numerics in (BF16, FULL))
    pairs = [(given[key], exact[key]) for key in exact] if isinstance(exact, dict) else [(given, exact)]
    for a, b in pairs:
        assert a.dtype == torch.float32 and 0 < gap(a, b) < 3 * EPS


def test_layers_read_bfloat16_of_weights_in_float32_and_losses_are_summed_in_float32() -> None:
    m, row = model("own", BF16), rows(batch("own"))[0]
    SEEN.clear()
    m.gradient(m.vector(), row)
    assert [(torch.float32, torch.float32, torch.bfloat16), (torch.float32, torch.bfloat16)] == SEEN
    assert m.losses(m.vector(), row).dtype == torch.float32


def test_dense_networks_are_known_layers_under_autocast() -> None:
    """Not the products by hand, whose types would not be those of autocast."""
    assert model("dense", FULL).dense is not None
    assert model("dense", BF16).dense is None and isinstance(model("dense", BF16).layered, Layered)


def test_minibatches_in_parts_add_up() -> None:
    m = model("convolutional", BF16)
    row = rows(batch("convolutional"))[0]
    assert gap(m.gradient(m.vector(), row, micro=2), m.gradient(m.vector(), row)) < EPS


def test_a_penalty_is_in_full() -> None:
    made = nn.Linear(16, CLASSES)
    given, x = rows(batch("dropout"))[0], torch.linspace(-1, 1, 17 * CLASSES)
    g = [Model(made, cross_entropy, penalty, numerics=BF16).gradient(x, given) for penalty in (None, lambda v: v @ v)]
    torch.testing.assert_close(g[1] - g[0], 2 * x, atol=1e-6, rtol=1e-5)


def test_nothing_is_left_behind() -> None:
    m = model("convolutional", BF16)
    m.gradients(points(m), batch("convolutional"))
    assert not torch.is_autocast_enabled("cpu")
    m.loss = lambda outputs, y: 1 / 0
    with pytest.raises(ZeroDivisionError):
        m.gradient(m.vector(), rows(batch("convolutional"))[0])
    assert not torch.is_autocast_enabled("cpu")


class Choosy(nn.Module):
    """Writes its output into a buffer of another type, as no operation under autocast can."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), CLASSES).index_copy(0, torch.arange(len(x)), self.inner(x)).index_add(
            0, torch.arange(len(x)), self.inner(x)
        )  # fmt: skip


def test_a_module_that_autocast_breaks_is_refused() -> None:
    samples = Split(torch.randn(8, 16), torch.randint(0, CLASSES, (8,)))
    examine(Model(Choosy(), cross_entropy), samples)
    with pytest.raises(ModelError, match=r"Choosy or its loss, which works in float32, raised.*enabled=False"):
        examine(Model(Choosy(), cross_entropy, numerics=BF16), samples)


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


class Flagged(torch.autograd.Function):
    """Notes in both passes whether products are in TF32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        SEEN.append(("forward", *flags()))
        return x * 1

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        SEEN.append(("backward", *flags()))
        return g[0]


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Flagged.apply(self.inner(x))  # type: ignore[no-untyped-call]
        return out


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_of_the_model_alone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    m, on = Model(Watched(), cross_entropy, numerics=Numerics(precision)), precision == "tf32"
    SEEN.clear()
    given = rows(batch("dropout"))[0]
    m.gradient(m.vector(), given)
    m.outputs(m.vector(), given.x)
    assert [("forward", on, on), ("backward", on, on), ("forward", on, on)] == SEEN
    assert flags() == (False, False)


def test_tf32_of_products_by_hand_ends_where_their_results_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    m = model("dense", Numerics("tf32"))
    assert m.dense is not None
    within, gradients = list[Any](), m.dense.gradients

    def noted(*arguments: Any) -> Any:
        for part in gradients(*arguments):
            within.append(flags())
            yield part

    monkeypatch.setattr(m.dense, "gradients", noted)
    outside = [flags() for _ in m.gradient_parts(points(m), batch("dense"))]
    assert within == [(True, True)] * 4 and outside == [(False, False)] * 4
    joined, exact = (each.gradients(points(m), batch("dense")) for each in (m, model("dense", FULL)))
    assert torch.equal(joined, exact)                      # on a CPU


@pytest.mark.parametrize(("strict", "draws"), [(False, False), (False, True), (True, False), (True, True)])
def test_attention_on_a_gpu_is_fused_only_where_its_gradient_is_deterministic(strict: bool, draws: bool) -> None:
    cuda: Any = torch.backends.cuda

    def fused() -> set[bool]:
        return {cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()}

    with Numerics(strict=strict).attention(torch.device("cuda"), draws):
        assert fused() == {strict and not draws}
    with Numerics(strict=strict).attention(torch.device("cpu"), draws):
        assert fused() == {True}
    assert fused() == {True}


def test_rounding_is_that_of_seven_bits() -> None:
    """A product of ones and a number that bfloat16 cannot hold."""
    made = nn.Linear(1, 1, bias=False)
    m = Model(made, lambda outputs, y: outputs.squeeze(1), numerics=BF16)
    nearest = m.outputs(torch.ones(1), torch.full((1, 1), 1 + 2**-9))
    assert nearest.item() == 1 and math.isclose(EPS, 2**-7)
    assert m.outputs(torch.full((1,), 1 + 2**-9), torch.ones(1, 1)).item() == 1   # the weight, kept in float32
    assert m.vector().dtype == torch.float32
