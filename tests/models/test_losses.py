"""Losses of each sample against their definitions, at extreme logits too, and under vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedsim.errors import ModelError
from fedsim.models.losses import correct, cross_entropy, logistic, squared

LOGITS = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.5, 0.5]], dtype=torch.float64)


def test_cross_entropy_is_the_negative_log_probability() -> None:
    targets = torch.tensor([1, 2])
    expected = -torch.log(LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True))[[0, 1], targets]
    torch.testing.assert_close(cross_entropy(LOGITS, targets), expected)


def test_cross_entropy_of_a_sequence_is_the_mean_over_positions() -> None:
    outputs, targets = torch.stack([LOGITS, -LOGITS]), torch.tensor([[0, 1], [2, 0]])
    expected = torch.stack([cross_entropy(o, t).mean() for o, t in zip(outputs, targets, strict=True)])
    torch.testing.assert_close(cross_entropy(outputs, targets), expected)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_squared_is_half_the_squared_error(shape: tuple[int, ...]) -> None:
    outputs = torch.tensor([1.0, 2.0, -3.0]).reshape(shape)
    assert squared(outputs, torch.tensor([0.0, 2.0, 1.0])).tolist() == [0.5, 0.0, 8.0]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_logistic_is_log1p_exp_of_the_margin(shape: tuple[int, ...]) -> None:
    outputs = torch.tensor([0.3, -2.0, 5.0, -7.0], dtype=torch.float64).reshape(shape)
    targets = torch.tensor([0, 1, 1, 0])
    margin = (2 * targets - 1) * outputs.reshape(-1)
    torch.testing.assert_close(logistic(outputs, targets), torch.log1p(torch.exp(-margin)))


def test_logistic_is_exact_at_extreme_logits() -> None:
    outputs = torch.tensor([800.0, -800.0, 800.0, -800.0, 40.0], dtype=torch.float64)
    losses = logistic(outputs, torch.tensor([1, 0, 0, 1, 1]))
    expected = torch.tensor([0.0, 0.0, 800.0, 800.0, 4.248354255291589e-18], dtype=torch.float64)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


def test_correct_counts_classes_positions_and_binary_logits() -> None:
    assert correct(LOGITS, torch.tensor([1, 2])).tolist() == [1.0, 0.0]
    sequences = torch.stack([LOGITS, LOGITS])
    assert correct(sequences, torch.tensor([[1, 2], [1, 0]])).tolist() == [0.5, 1.0]
    logits = torch.tensor([0.1, -0.1, 3.0])
    for outputs in (logits, logits[:, None]):
        assert correct(outputs, torch.tensor([1, 0, 0])).tolist() == [1.0, 1.0, 0.0]
    assert correct(LOGITS, torch.tensor([1, 2])).dtype == torch.float32


CASES = [
    (cross_entropy, (4, 5), torch.tensor([[0, 1, 2, 3], [4, 0, 1, 2]])),
    (cross_entropy, (2, 3, 5), torch.tensor([[[0, 1, 2], [3, 4, 0]], [[1, 2, 3], [4, 0, 1]]])),
    (squared, (4, 1), torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 0.0, 1.0, 2.0]], dtype=torch.float64)),
    (logistic, (4, 1), torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])),
]


@pytest.mark.parametrize(("loss", "shape", "targets"), CASES)
def test_losses_and_gradients_stack(loss, shape: tuple[int, ...], targets: Tensor) -> None:  # type: ignore[no-untyped-def]
    outputs = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([loss(outputs[i], targets[i]) for i in (0, 1)])
    torch.testing.assert_close(vmap(loss)(outputs, targets), alone)
    stacked = vmap(grad(lambda o, t: loss(o, t).mean()))(outputs, targets)
    for i in (0, 1):
        leaf = outputs[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf, targets[i]).mean(), leaf)
        torch.testing.assert_close(stacked[i], expected)


@pytest.mark.parametrize("loss", [cross_entropy, squared, logistic, correct])
def test_shapes_that_do_not_fit(loss) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=rf"{loss.__name__} got outputs \[4, 3, 2\] and targets \[4\]; expected"):
        loss(torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64))
