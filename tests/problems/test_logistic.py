"""Logistic regression: gradients, minimiser and constants on digits; the EF21 experiments' constants on their data."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_svmlight_file
from torch import Tensor
from torch.func import grad, jacrev

from fedsim.controller.loading import resolve_data
from fedsim.data import load
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import ConfigError
from fedsim.experiment.experiment import Data
from fedsim.problems import Problem, logistic_regression

Regularizer = Literal["l2", "nonconvex"]
DIGITS = load_digits()
FEATURES, LABELS = DIGITS.data / 16, DIGITS.target % 2
D = FEATURES.shape[1]
PROBLEMS: dict[Regularizer, Problem] = {
    "l2": logistic_regression((FEATURES, LABELS), n=20, lam=0.1, regularizer="l2"),
    "nonconvex": logistic_regression((FEATURES, LABELS), n=20, lam=0.1, regularizer="nonconvex"),
}
either = pytest.mark.parametrize("regularizer", ["l2", "nonconvex"])


def point(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(x: np.ndarray, regularizer: Regularizer, lam: float = 0.1) -> float:
    """f in the paper's symbols, client by client."""
    signs = 2.0 * LABELS - 1
    parts = [slice(89 * i, 89 * (i + 1) if i < 19 else None) for i in range(20)]
    losses = [np.logaddexp(0, -signs[part] * (FEATURES[part] @ x)).mean() for part in parts]
    r = (x**2).sum() / 2 if regularizer == "l2" else (x**2 / (1 + x**2)).sum()
    return float(np.mean(losses) + lam * r)


@either
def test_value_is_the_mean_of_the_clients_means(regularizer: Regularizer) -> None:
    problem, x = PROBLEMS[regularizer], point(0)
    assert float(problem.value(x)) == pytest.approx(by_definition(x.numpy(), regularizer), rel=1e-12)
    clients = torch.stack([problem.client_value(i, x) for i in range(problem.n)])
    torch.testing.assert_close(problem.value(x), clients.mean())
    gradients = torch.stack([problem.client_gradient(i, x) for i in range(problem.n)])
    torch.testing.assert_close(problem.gradient(x), gradients.mean(0))


@either
def test_gradient_equals_finite_differences(regularizer: Regularizer) -> None:
    problem, x, h = PROBLEMS[regularizer], point(1), 1e-5
    for direction in torch.eye(D, dtype=torch.float64)[::9]:
        rise = problem.value(x + h * direction) - problem.value(x - h * direction)
        assert float(problem.gradient(x) @ direction) == pytest.approx(float(rise) / (2 * h), abs=1e-9)


def test_module_loss_and_penalty_say_the_same() -> None:
    """The engine trains the objective that ``value`` measures."""
    problem, x = PROBLEMS["nonconvex"], point(2)
    torch.nn.utils.vector_to_parameters(x, problem.module.parameters())
    train = problem.dataset.train
    assert problem.penalty is not None and train.client is not None
    losses = problem.loss(problem.module(train.x), train.y).detach()
    for i in (0, 19):
        mine = torch.from_numpy(train.client == i)
        torch.testing.assert_close(losses[mine].mean() + problem.penalty(x), problem.client_value(i, x))


def test_the_l2_minimiser() -> None:
    problem = PROBLEMS["l2"]
    assert problem.minimizer is not None and problem.f_min is not None
    assert problem.gradient(problem.minimizer).norm() < 1e-12
    assert float(problem.value(problem.minimizer)) == problem.f_min
    assert all(problem.value(problem.minimizer + point(seed, 1e-3)) > problem.f_min for seed in range(5))


@pytest.mark.parametrize("lam", [1e-2, 1e-6])
def test_newton_reaches_unscaled_and_weakly_regularised_minima(lam: float) -> None:
    problem = logistic_regression((DIGITS.data, LABELS), n=7, lam=lam)
    assert problem.minimizer is not None
    assert problem.gradient(problem.minimizer).norm() < 1e-12


def test_newton_s_steps_are_halved_where_they_overshoot() -> None:
    rows = [[-50.0, 53.2, 30.4], [-0.1, 0.4, -0.5], [0.1, 0.0, 0.0], [24.1, 34.1, 24.8], [75.8, 41.0, 48.7]]
    problem = logistic_regression((np.array(rows), np.array([0, 1, 0, 1, 0])), n=1, lam=1.5e-3)
    assert problem.minimizer is not None
    assert problem.gradient(problem.minimizer).norm() < 1e-11


def test_no_minimiser_is_claimed_without_convexity() -> None:
    problem = PROBLEMS["nonconvex"]
    assert (problem.minimizer, problem.f_min, problem.mu) == (None, None, 0)


@either
@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 10), client=st.integers(0, 19))
def test_constants_bound_the_change_of_the_gradient(
    regularizer: Regularizer, seed: int, scale: float, client: int
) -> None:
    problem = PROBLEMS[regularizer]
    x, y = point(seed, scale), point(seed + 1, scale)
    distance, rounding = (x - y).norm(), 1e-12
    change = problem.gradient(x) - problem.gradient(y)
    assert change.norm() <= problem.smoothness * distance + rounding
    assert change @ (x - y) >= problem.mu * distance**2 - rounding if problem.mu else True
    local = problem.client_gradient(client, x) - problem.client_gradient(client, y)
    assert local.norm() <= problem.local_smoothness[client] * distance + rounding


@either
def test_constants_are_attained_at_zero(regularizer: Regularizer) -> None:
    """At x = 0 the logistic loss has its full curvature 1/4 and both penalties theirs: no smaller constant would do."""
    problem, zero = PROBLEMS[regularizer], torch.zeros(D, dtype=torch.float64)
    top = torch.linalg.eigvalsh(jacrev(grad(problem.value))(zero))[-1]
    assert float(top) == pytest.approx(problem.smoothness, rel=1e-12)
    for i in (0, 19):
        local = jacrev(grad(partial(problem.client_value, i)))(zero)
        assert float(torch.linalg.eigvalsh(local)[-1]) == pytest.approx(problem.local_smoothness[i], rel=1e-12)


def test_rows_go_in_file_order_and_the_remainder_to_the_last() -> None:
    train = PROBLEMS["l2"].dataset.train
    assert train.client is not None
    assert np.bincount(train.client).tolist() == [89] * 19 + [106]
    assert (np.diff(train.client) >= 0).all()
    torch.testing.assert_close(train.x, torch.from_numpy(FEATURES))


def test_constants_of_fewer_rows_than_features() -> None:
    problem = logistic_regression((FEATURES, LABELS), n=100, regularizer="nonconvex")
    expected = [np.linalg.norm(FEATURES[17 * i : 17 * i + 17], 2) ** 2 / (4 * 17) + 0.2 for i in range(99)]
    np.testing.assert_allclose(problem.local_smoothness[:99], expected)


@pytest.mark.parametrize("values", [(-1, 1), (1, 2), (0, 1)])
def test_the_larger_label_is_positive(values: tuple[int, int]) -> None:
    labels = np.array(values)[LABELS]
    problem = logistic_regression((FEATURES, labels), regularizer="nonconvex")
    assert torch.equal(problem.dataset.train.y, torch.from_numpy(LABELS))


def test_a_data_set_keeps_its_name_and_test_split() -> None:
    x, y = torch.from_numpy(DIGITS.images / 16).float()[:, None], torch.from_numpy(LABELS)
    dataset = Dataset("parity", Split(x[:1500], y[:1500]), Split(x[1500:], y[1500:]), classes=2, notes="odd")
    problem = logistic_regression(dataset, n=3)
    assert (problem.dataset.name, problem.dataset.notes) == ("parity", "odd")
    assert problem.dataset.train.x.shape == (1500, D)
    assert problem.dataset.test.x.shape == (297, D)
    assert problem.dataset.test.x.dtype == torch.float64
    assert torch.equal(problem.dataset.test.y, y[1500:])


def test_settings_out_of_range() -> None:
    data = (FEATURES, LABELS)
    with pytest.raises(ConfigError, match="did you mean 'nonconvex'"):
        logistic_regression(data, regularizer="non-convex")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lam=0"):
        logistic_regression(data, lam=0.0)
    with pytest.raises(ConfigError, match="lam=nan"):
        logistic_regression(data, lam=float("nan"), regularizer="nonconvex")
    with pytest.raises(ConfigError, match="n=2000 clients for 1797 rows"):
        logistic_regression(data, n=2000)
    with pytest.raises(ConfigError, match="10 distinct labels"):
        logistic_regression((FEATURES, DIGITS.target))
    with pytest.raises(ConfigError, match=r"labels \(10,\)"):
        logistic_regression((FEATURES, LABELS[:10]))
    with pytest.raises(ConfigError, match="NaN or infinity"):
        logistic_regression((np.where(FEATURES > 0.9, np.nan, FEATURES), LABELS))


@pytest.mark.parametrize(
    ("name", "rows", "d", "pooled", "mean", "root_mean_square", "gamma"),
    [
        ("phishing", 11055, 68, 0.36255, 0.36608, 0.36609, 2.016e-2),
        ("mushrooms", 8124, 112, 2.78621, 3.47112, 3.49323, 1.282e-3),
        ("a9a", 32561, 123, 1.77192, 1.77304, 1.77307, 2.297e-3),
        ("w8a", 49749, 300, 0.86120, 0.98821, 1.01612, 1.642e-3),
    ],
)
@pytest.mark.slow
def test_constants_of_the_ef21_experiments(
    name: str, rows: int, d: int, pooled: float, mean: float, root_mean_square: float, gamma: float
) -> None:
    """n = 20, lam = 0.1, Top-1. EF21 takes L of the pooled rows; ours weighs clients alike, so it differs by 1e-4."""
    path = Path(os.environ.get("FEDSIM_DATA", "")) / "libsvm" / name
    if not path.is_file():
        pytest.skip(f"needs libsvm/{name} under FEDSIM_DATA")
    dataset = load("libsvm", path=path, test_fraction=0)
    problem = logistic_regression(dataset, n=20, lam=0.1, regularizer="nonconvex")
    assert problem.dataset.train.x.shape == (rows, d)
    features, labels = load_svmlight_file(str(path))
    order_of_the_file = torch.from_numpy(features.toarray())
    torch.testing.assert_close(problem.dataset.train.x, order_of_the_file, rtol=1e-7, atol=0)   # it was float32
    assert torch.equal(problem.dataset.train.y, torch.from_numpy((labels == labels.max()).astype(np.int64)))
    smoothness = problem.local_smoothness
    quadratic_mean = float(np.sqrt(np.mean(smoothness**2)))
    assert round(float(smoothness.mean()), 5) == mean
    assert round(quadratic_mean, 5) == root_mean_square
    assert problem.smoothness == pytest.approx(pooled, rel=1e-4)
    assert problem.pooled_smoothness is not None and round(problem.pooled_smoothness, 5) == pooled
    contraction = 1 - np.sqrt(1 - 1 / d)
    xi = np.sqrt((1 - 1 / d) / contraction**2)
    assert float(f"{1 / (problem.smoothness + quadratic_mean * xi):.3e}") == gamma


def test_a_named_problem_takes_all_rows_of_a_file_in_their_order() -> None:
    if not (Path(os.environ.get("FEDSIM_DATA", "")) / "libsvm" / "phishing").is_file():
        pytest.skip("needs libsvm/phishing under FEDSIM_DATA")
    problem = resolve_data(Data("logistic_regression", options={"data": "phishing", "regularizer": "nonconvex"}))
    assert isinstance(problem, Problem) and problem.dataset.train.x.shape == (11055, 68)
    assert problem.dataset.train.client is not None and (np.diff(problem.dataset.train.client) >= 0).all()
