"""Every model of the zoo: size, shapes, stacking, gradients, reproducibility, and learning on real digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsim.errors import ConfigError, ModelError
from fedsim.models import (
    GPT,
    MLP,
    MODELS,
    Architecture,
    CharLSTM,
    CifarLeNet,
    LeNet5,
    Logistic,
    LoRA,
    McMahanCNN,
    ResNet18,
)  # fmt: skip
from fedsim.models.losses import correct, cross_entropy

MNIST, CIFAR, DIGITS, HAR = (1, 28, 28), (3, 32, 32), (1, 8, 8), (9, 128)

CASES = [  # one small input for each model
    (Logistic(), DIGITS),
    (Logistic(bias=False), HAR),
    (MLP(), HAR),
    (MLP((16,)), DIGITS),
    (LeNet5(), MNIST),
    (McMahanCNN(), DIGITS),
    (CifarLeNet(), CIFAR),
    (ResNet18(), (3, 4, 4)),
    (ResNet18("imagenet"), DIGITS),
    (CharLSTM(hidden=16), (6,)),
    (GPT(width=8, layers=2, heads=2), (6,)),
    (GPT(width=8, layers=1, tied=False), (6,)),
]
every_model = pytest.mark.parametrize(("model", "shape"), CASES, ids=lambda value: str(value))


def samples(model: Architecture, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, CharLSTM | GPT):
        tokens = torch.randint(0, 10, (3, shape[0] + 1), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 10, (3,), generator=generator)


def build(model: Architecture, shape: tuple[int, ...], seed: int = 0, classes: int = 10) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.build(shape, classes)


def gradient(network: nn.Module, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(network, parameters, (x,)), y).mean()

    gradients: dict[str, Tensor] = grad(loss)(parameters)
    return gradients


@pytest.mark.parametrize(
    ("model", "shape", "classes", "expected"),
    [
        (Logistic(), MNIST, 10, 7_850),
        (Logistic(bias=False), MNIST, 10, 7_840),
        (MLP(), MNIST, 10, 199_210),
        (LeNet5(), MNIST, 10, 61_706),
        (LeNet5(), CIFAR, 10, 62_006),
        (McMahanCNN(), MNIST, 10, 1_663_370),
        (CifarLeNet(), CIFAR, 10, 797_962),
        (ResNet18("imagenet"), CIFAR, 10, 11_181_642),
        (ResNet18("imagenet"), CIFAR, 100, 11_227_812),
        (ResNet18("cifar"), CIFAR, 10, 11_173_962),
        (CharLSTM(), (80,), 90, 822_570),
        (GPT(width=768, layers=12, heads=12), (1024,), 50_257, 124_439_808),   # GPT-2 small
        (GPT(width=768, layers=12, heads=12, tied=False), (1024,), 50_257, 163_037_184),
        (GPT(), (80,), 90, 210_944),
    ],
    ids=str,
)
def test_parameter_counts_of_the_papers(
    model: Architecture, shape: tuple[int, ...], classes: int, expected: int
) -> None:
    with torch.device("meta"):
        network = model.build(shape, classes)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_every_model_is_covered() -> None:
    """But LoRA, around another one: see tests/models/test_lora.py."""
    assert {type(model) for model, _ in CASES} == {*MODELS} - {LoRA}


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_outputs_and_gradient_flow(model: Architecture, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    network = build(model, shape).to(dtype)
    x, y = samples(model, shape, dtype)
    outputs = network(x)
    assert outputs.shape == (*y.shape, 10)
    assert outputs.dtype == dtype
    gradients = torch.autograd.grad(cross_entropy(outputs, y).mean(), list(network.parameters()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


@every_model
def test_stacked_gradients_equal_one_by_one(model: Architecture, shape: tuple[int, ...]) -> None:
    """In float64, where nn.LSTM has a batching rule through its gradient and rounding is far below the tolerance."""
    networks = [build(model, shape, seed).double() for seed in (0, 1)]
    x, y = samples(model, shape, torch.float64)
    named = [{name: p.detach() for name, p in network.named_parameters()} for network in networks]
    stacked = {name: torch.stack([parameters[name] for parameters in named]) for name in named[0]}
    together = vmap(lambda parameters: gradient(networks[0], parameters, x, y))(stacked)
    for k, network in enumerate(networks):
        alone = torch.autograd.grad(cross_entropy(network(x), y).mean(), list(network.parameters()))
        for g, expected in zip(together.values(), alone, strict=True):
            torch.testing.assert_close(g[k], expected, rtol=1e-9, atol=1e-12)


@every_model
def test_the_seed_decides_the_parameters(model: Architecture, shape: tuple[int, ...]) -> None:
    def vector(seed: int) -> Tensor:
        return nn.utils.parameters_to_vector(build(model, shape, seed).parameters()).detach()

    assert torch.equal(vector(0), vector(0))
    assert not torch.equal(vector(0), vector(1))


@every_model
def test_no_layer_mixes_samples_or_draws_random_numbers(model: Architecture, shape: tuple[int, ...]) -> None:
    network = build(model, shape)
    x, _ = samples(model, shape)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)
    assert not list(network.buffers())


def test_dense_models_are_stackable() -> None:
    for model in (Logistic(), MLP((5, 4))):
        assert {type(layer) for layer in build(model, HAR).modules()} <= {nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU}


def test_logistic_from_zero_predicts_nothing() -> None:
    network = build(Logistic(zero=True), DIGITS)
    assert torch.equal(network(torch.ones(2, *DIGITS)), torch.zeros(2, 10))


def test_regression_and_binary_have_one_output() -> None:
    assert build(MLP(), (13,), classes=0)(torch.ones(2, 13)).shape == (2, 1)
    assert build(Logistic(), (13,), classes=1)(torch.ones(2, 13)).shape == (2, 1)


def test_resnet_has_torchvision_s_initial_norm() -> None:
    """By He's formula: 7686 from the convolutions, 4800 scales of GroupNorm, 3 from the last layer."""
    norm = nn.utils.parameters_to_vector(build(ResNet18("imagenet"), CIFAR).parameters()).detach().norm()
    assert float(norm) == pytest.approx((7686 + 4800 + 3) ** 0.5, rel=2e-3)


@pytest.mark.parametrize("model", [CharLSTM(hidden=16), GPT(width=8)], ids=str)
def test_models_of_text_see_no_future(model: Architecture) -> None:
    network = build(model, (6,))
    x, _ = samples(model, (6,))
    changed = x.clone()
    changed[:, 3] = (x[:, 3] + 1) % 10
    before, after = network(x), network(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


SMALLEST = [(McMahanCNN(), 4), (LeNet5(), 12), (CifarLeNet(), 16), (ResNet18(), 1)]


@pytest.mark.parametrize(("model", "smallest"), SMALLEST)
def test_smallest_images(model: Architecture, smallest: int) -> None:
    shape = (2, smallest, smallest)
    assert build(model, shape)(torch.ones(1, *shape)).shape == (1, 10)
    with pytest.raises(ModelError, match=f"at least {smallest}x{smallest}.*ResNet18 any image"):
        build(model, (2, smallest, smallest - 1))


def test_models_name_the_shapes_they_cannot_take() -> None:
    with pytest.raises(ModelError, match=r"LeNet5 got samples of shape \[1, 8, 8\]; .* Logistic and MLP take any"):
        LeNet5().build(DIGITS, 10)
    with pytest.raises(ModelError, match=r"ResNet18 got samples of shape \[9, 128\]"):
        ResNet18().build(HAR, 10)
    with pytest.raises(ModelError, match=r"CharLSTM got samples of shape \[1, 8, 8\]; expected sequences"):
        CharLSTM().build(DIGITS, 10)
    for model in (CharLSTM(), GPT()):
        with pytest.raises(ModelError, match="classes=0"):
            model.build((5,), 0)
    with pytest.raises(ModelError, match="classes=-1"):
        Logistic().build(DIGITS, -1)


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="hidden"):
        MLP((200, 0))
    with pytest.raises(ConfigError, match="'cifar' or 'imagenet'"):
        ResNet18("cifer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="divisor of 64"):
        ResNet18(groups=3)
    with pytest.raises(ConfigError, match="at least 1"):
        CharLSTM(layers=0)
    with pytest.raises(ConfigError, match="a multiple of heads"):
        GPT(width=10, heads=4)
    with pytest.raises(ConfigError, match=r"GPT.layers is 0; expected a whole number"):
        GPT(layers=0)
    with pytest.raises(ConfigError, match=r"GPT.dropout is 1"):
        GPT(dropout=1)


@pytest.mark.parametrize("model", [MLP(), McMahanCNN()], ids=str)
def test_models_fit_a_batch_of_real_digits(model: Architecture) -> None:
    digits = load_digits()
    x = torch.from_numpy(digits.images[:40].astype(np.float32))[:, None] / 16
    y = torch.from_numpy(digits.target[:40])
    network = build(model, DIGITS)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(80):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(network(x), y).mean())
        optimizer.step()
    assert correct(network(x), y).mean() == 1
