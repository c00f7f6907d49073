"""Quadratics: the constants are exact, the minimiser is one, and the data say the same as the matrices."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacrev

from fedsim.errors import ConfigError
from fedsim.problems import least_squares, quadratic_from, zeta_least_squares

SETTINGS = st.fixed_dictionaries(
    {
        "n": st.integers(2, 5),
        "d": st.integers(1, 6),
        "rows": st.integers(3, 8),
        "heterogeneity": st.floats(0, 10),
        "condition": st.floats(1, 1e3),
        "seed": st.integers(0, 99),
    }
)


def positive_definite(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((n, d, d))
    return roots @ roots.swapaxes(1, 2), rng.standard_normal((n, d))


def test_default_is_the_heterogeneous_set_up_of_the_oracles() -> None:
    problem = least_squares()
    assert problem.dataset.train.x.shape == (200, 20)
    assert problem.dataset.train.x.dtype == problem.dataset.train.y.dtype == torch.float64
    assert problem.local_smoothness.max() == pytest.approx(1)
    assert problem.minimizer is not None
    at_optimum = [problem.client_gradient(i, problem.minimizer).norm() for i in range(problem.n)]
    assert np.mean(at_optimum) > 0.1


@given(SETTINGS)
def test_the_minimiser_has_no_gradient_and_the_smallest_value(setting: dict[str, float]) -> None:
    problem = least_squares(**setting)  # type: ignore[arg-type]
    x = problem.minimizer
    assert x is not None and problem.f_min is not None
    assert problem.gradient(x).norm() <= 1e-12 * (1 + setting["heterogeneity"])
    assert float(problem.value(x)) == pytest.approx(problem.f_min, rel=1e-9, abs=1e-12)


@given(SETTINGS)
def test_constants_are_the_extreme_curvatures(setting: dict[str, float]) -> None:
    """The Hessians by autograd, independent of the linear algebra that computed the constants."""
    problem = least_squares(**setting)  # type: ignore[arg-type]
    x = torch.ones(problem.dataset.train.x.shape[1], dtype=torch.float64)
    whole = torch.linalg.eigvalsh(jacrev(grad(problem.value))(x))
    assert float(whole[-1]) == pytest.approx(problem.smoothness)
    assert float(whole[0]) == pytest.approx(problem.mu, abs=1e-12)
    for i, expected in enumerate(problem.local_smoothness):
        local = jacrev(grad(partial(problem.client_value, i)))(x)
        assert float(torch.linalg.eigvalsh(local)[-1]) == pytest.approx(expected)


def test_without_heterogeneity_the_clients_share_their_minimiser() -> None:
    problem = least_squares(heterogeneity=0)
    assert problem.minimizer is not None
    assert problem.f_min == pytest.approx(0, abs=1e-24)
    assert all(problem.client_gradient(i, problem.minimizer).norm() < 1e-12 for i in range(problem.n))


def test_condition_spreads_the_curvatures() -> None:
    flat, steep = least_squares(condition=1), least_squares(condition=1e4)
    assert flat.smoothness / flat.mu < 10
    assert 1e3 < steep.smoothness / steep.mu < 1e5


def test_the_seed_decides() -> None:
    one, same, other = least_squares(seed=1), least_squares(seed=1), least_squares(seed=2)
    assert torch.equal(one.dataset.train.x, same.dataset.train.x)
    assert not torch.equal(one.dataset.train.x, other.dataset.train.x)


def test_torch_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    least_squares()
    assert torch.equal(torch.get_rng_state(), before)


def test_quadratic_from_has_the_given_hessians_and_linear_terms() -> None:
    h, b = positive_definite(3, 4)
    problem = quadratic_from(h, b)
    x = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for i in range(3):
        expected = torch.from_numpy(h[i] @ x.numpy() - b[i])
        torch.testing.assert_close(problem.client_gradient(i, x), expected, rtol=1e-10, atol=1e-10)
        own_minimiser = torch.from_numpy(np.linalg.solve(h[i], b[i]))
        assert float(problem.client_value(i, own_minimiser)) == pytest.approx(0, abs=1e-18)
    assert problem.minimizer is not None
    np.testing.assert_allclose(problem.minimizer, np.linalg.solve(h.mean(0), b.mean(0)), rtol=1e-9)


def test_quadratic_from_takes_singular_hessians_with_b_in_their_range() -> None:
    """Beznosikov et al.'s ``(a_i . x)^2 + ||x||^2 / 2`` and, without the norm, its rank-one part."""
    a = np.array([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]])
    outer = 2 * np.einsum("ni,nj->nij", a, a)
    full = quadratic_from(outer + np.eye(3), np.zeros((3, 3)))
    assert full.minimizer is not None
    assert torch.equal(full.minimizer, torch.zeros(3, dtype=torch.float64))
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert float(full.value(x)) == pytest.approx(np.mean((a @ x.numpy()) ** 2) + 7)
    low_rank = quadratic_from(outer, a)
    np.testing.assert_allclose(low_rank.client_gradient(1, x), (2 * a[1] @ x.numpy() - 1) * a[1], atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2, "d": 9, "rows": 4}, "n \\* rows of at least d=9"),
        ({"heterogeneity": -1.0}, "heterogeneity=-1"),
        ({"heterogeneity": float("nan")}, "heterogeneity=nan"),
        ({"condition": 0.5}, "condition=0.5"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        least_squares(**settings)  # type: ignore[arg-type]


def test_matrices_that_are_no_quadratic_problem() -> None:
    h, b = positive_definite(2, 3)
    with pytest.raises(ConfigError, match=r"\[n, d, d\] and \[n, d\]"):
        quadratic_from(h, b[:, :2])
    with pytest.raises(ConfigError, match="not symmetric"):
        quadratic_from(h + np.triu(np.ones((3, 3)), 1), b)
    with pytest.raises(ConfigError, match="eigenvalue"):
        quadratic_from(h - 100 * np.eye(3), b)
    with pytest.raises(ConfigError, match="outside the range"):
        quadratic_from(np.stack([np.diag([1.0, 0.0]), np.eye(2)]), np.ones((2, 2)))
    with pytest.raises(ConfigError, match="singular"):
        quadratic_from(np.stack([np.diag([1.0, 0.0])] * 2), np.zeros((2, 2)))


def test_a_client_that_does_not_exist() -> None:
    problem = least_squares(n=2)
    with pytest.raises(ConfigError, match="got client 2; expected 0 to 1"):
        problem.client_value(2, torch.zeros(20, dtype=torch.float64))


def test_zeta_is_how_far_clients_disagree() -> None:
    problem, more = zeta_least_squares(4, 5, zeta=2.0), zeta_least_squares(4, 5, zeta=6.0)
    np.testing.assert_allclose(problem.local_smoothness, np.array([1, 4, 9, 16]) / 4)
    assert [problem.smoothness, problem.mu] == pytest.approx([30 / 16] * 2)
    assert problem.minimizer is not None and more.minimizer is not None
    for i in range(4):
        at_rest = problem.client_gradient(i, problem.minimizer)
        torch.testing.assert_close(more.client_gradient(i, more.minimizer), 3 * at_rest)
        assert at_rest.norm() > 0.1
    agreed = zeta_least_squares(4, 5, zeta=0.0)
    assert all(agreed.client_gradient(i, torch.zeros(5, dtype=torch.float64)).norm() == 0 for i in range(4))
    with pytest.raises(ConfigError, match=r"n=0, d=5, zeta=1.0; expected n and d of at least 1"):
        zeta_least_squares(0, 5)
    with pytest.raises(ConfigError, match="zeta=-1"):
        zeta_least_squares(4, 5, zeta=-1)
