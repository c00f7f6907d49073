"""Properties of every compressor in theory: constants and what attains them, means, scale; and stacks of clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedsim.compress import QSGD, Identity, LowRank, Natural, NaturalDithering, PowerSGD, RandK, Sign, TopK
from fedsim.errors import ConfigError, DivergenceError
from tests.compress.cases import COMPRESSORS, HOMOGENEOUS, RANDOM, At, D, vector

CONFIDENCE = 1e-6
"""Chance that a statistical check of a correct compressor fails, for all coordinates together. Draws are fixed."""
TRIALS = 4000
UNBIASED = [name for name in RANDOM if COMPRESSORS[name].omega(D) is not None]


def many(compressor: Any, x: Tensor, trials: int = TRIALS) -> Tensor:
    """Independent messages for one vector, unpacked: ``[trials, d]``."""
    return torch.vmap(lambda key: compressor.compress(x, At(key)).unpack())(torch.arange(trials))


def error(compressor: Any, x: Tensor, trials: int = 1) -> float:
    """Mean of ||C(x) - x||^2 over ||x||^2."""
    return float(((many(compressor, x, trials) - x) ** 2).sum(1).mean() / (x @ x))


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stack_and_vmap_are_a_loop(name: str, dtype: torch.dtype) -> None:
    compressor = COMPRESSORS[name]
    x = torch.stack([vector(seed, dtype=dtype) for seed in range(4)])
    keys = torch.arange(4)
    got = torch.vmap(lambda x, key: compressor.compress(x, At(key)).parts)(x, keys)
    read = torch.vmap(lambda x, key: compressor.compress(x, At(key)).unpack())(x, keys)
    for i in range(4):
        packed = compressor.compress(x[i], At(keys[i]))
        for part, expected in zip(got, packed.parts, strict=True):
            torch.testing.assert_close(part[i], expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
        torch.testing.assert_close(read[i], packed.unpack(), rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    again = torch.vmap(lambda *parts: compressor.unpack(parts, D))(*got)
    assert torch.equal(again, compressor.unpack(got, D)) and torch.equal(again, read)
    stack = compressor.compress(x, At(keys.unsqueeze(-1).squeeze(-1)) if name in RANDOM else At())
    assert torch.equal(stack.unpack(), read)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_vmap_in_vmap(name: str) -> None:
    compressor = COMPRESSORS[name]
    x = torch.stack([vector(seed) for seed in range(6)]).view(2, 3, D)
    keys = torch.arange(6).view(2, 3)
    one = torch.vmap(lambda x, key: compressor.compress(x, At(key)).unpack())
    assert torch.equal(torch.vmap(one)(x, keys).view(6, D), one(x.view(6, D), keys.view(6)))


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if COMPRESSORS[name].alpha(D) is not None])
@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_contraction(name: str, seed: int) -> None:
    """For every vector if C is deterministic; of a random one, in expectation: the unscaled Rand-k, with equality."""
    compressor, x = COMPRESSORS[name], vector(seed, dtype=torch.float64)
    if not x.any():
        return
    bound = 1 - compressor.alpha(D)
    if name in RANDOM:
        spread = many(compressor, x, 400)
        errors = ((spread - x) ** 2).sum(1) / (x @ x)
        beyond, noise = float(errors.mean()) - bound, 6 * float(errors.std()) / 20 + 1e-12
        assert (abs(beyond) if name == "rand unscaled" else beyond) <= noise
    else:
        assert error(compressor, x) <= bound + 1e-12


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_with_the_stated_variance(name: str) -> None:
    compressor, x = COMPRESSORS[name], vector(5, dtype=torch.float64)
    sent, omega = many(compressor, x), compressor.omega(D)
    levels = any(word in name for word in ("QSGD", "Tern", "dithering"))
    span = (1 + omega) * x.abs() + (x.norm() if levels else 0)      # of the values that a coordinate can have
    log = math.log(4 * D / CONFIDENCE)                     # the empirical Bernstein bound (Maurer and Pontil, 2009)
    bound = (2 * sent.var(0) * log / TRIALS).sqrt() + 7 * span * log / (3 * TRIALS)
    assert ((sent.mean(0) - x).abs() <= bound).all()
    squares = ((sent - x) ** 2).sum(1)
    assert float(squares.mean()) <= omega * float(x @ x) + 6 * float(squares.std()) / math.sqrt(TRIALS)


@pytest.mark.parametrize("name", HOMOGENEOUS)
@pytest.mark.parametrize("t", [0.3, 4.0, 1e6])
def test_positively_homogeneous(name: str, t: float) -> None:
    compressor, x = COMPRESSORS[name], vector(6, dtype=torch.float64)
    torch.testing.assert_close(
        compressor.compress(t * x, At()).unpack(), t * compressor.compress(x, At()).unpack(), rtol=1e-11, atol=0
    )


def test_natural_compression_is_homogeneous_for_powers_of_two_only() -> None:
    x = vector(6, dtype=torch.float64)
    one, half, third = (Natural().compress(t * x, At()).unpack() / t for t in (1.0, 0.5, 1 / 3))
    assert torch.equal(one, half) and not torch.allclose(one, third)


def test_constants_that_are_attained() -> None:
    ones = torch.ones(64, dtype=torch.float64)
    for k in (1, 8, 64):
        assert error(TopK(k=k), ones) == pytest.approx(1 - TopK(k=k).alpha(64), abs=1e-15)
    for x in (vector(1, 64, torch.float64), ones, torch.eye(64).double()[3]):
        assert error(Sign(), x) == pytest.approx(1 - float(x.abs().sum() ** 2 / (64 * x @ x)), abs=4e-16)
    assert error(Sign(), torch.eye(64).double()[3]) == pytest.approx(1 - Sign().alpha(64), abs=1e-15)
    scaled = RandK(k=8)
    assert error(scaled, vector(2, 64, torch.float64), 40_000) == pytest.approx(7, rel=0.03) and scaled.omega(64) == 7
    assert error(Natural(), torch.full((64,), 4 / 3).double(), TRIALS) == pytest.approx(1 / 8, rel=0.01)
    worst = torch.full((64,), 1 / (1 + math.sqrt(64))).double()
    worst[0] = 1
    ternary = QSGD(1, norm="linf")
    assert ternary.omega(64) == 3.5 and error(ternary, worst, 20_000) == pytest.approx(3.5, rel=0.02)
    four = QSGD(4, norm="linf")
    worst[1:] = 1 / (8 * (1 + four.omega(64)))
    assert error(four, worst, 20_000) == pytest.approx(four.omega(64), rel=0.02)


@pytest.mark.parametrize(("s", "d"), [(1, 200), (2, 200), (4, 200), (4, 2000), (8, 200), (1, 1), (3, 2)])
def test_natural_dithering_attains_its_constants(s: int, d: int) -> None:
    linf, l2, u, n = NaturalDithering(s, norm="linf"), NaturalDithering(s), 2.0 ** (1 - s), (d - 1) / 4
    omega = linf.omega(d)
    worst = torch.full((d,), u / (2 * (1 + omega))).double()
    if s > 1 and omega == pytest.approx((math.sqrt((1 + 2 * n) ** 2 + n) - 1 - 2 * n) / 2):
        worst[:] = 3 / (4 * (1 + omega))
    worst[0] = 1
    assert error(linf, worst, 10_000) == pytest.approx(omega, rel=0.03)
    if s == 1 or math.sqrt(d) * u >= 9 / 4:
        assert error(l2, torch.ones(d).double(), 10_000) == pytest.approx(l2.omega(d), rel=0.03)
    assert NaturalDithering(1, norm="linf").omega(d) == pytest.approx(QSGD(1, norm="linf").omega(d)), "TernGrad"
    if (s, d) == (8, 200):                                 # 9 shares of 1/3 = 4/3 2^-2
        assert error(l2, (torch.arange(d) < 9).double(), 10_000) == pytest.approx(1 / 8, rel=0.03)
        assert l2.omega(d) < 0.128


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("s", [1, 2, 3, 6])
def test_no_vector_exceeds_the_constant_of_natural_dithering(norm: Any, s: int) -> None:
    """By the variance of each coordinate between its neighbouring levels, at random vectors of every spread."""
    rng, levels = np.random.default_rng(s), np.array([0.0] + [2.0 ** (i - s) for i in range(1, s + 1)])
    for d in (1, 2, 3, 10, 100):
        x = np.exp(rng.uniform(0, 8, (3000, 1)) * -rng.random((3000, d)))
        y = x / np.linalg.norm(x, 2 if norm == "l2" else np.inf, axis=1, keepdims=True)
        above = np.clip(np.searchsorted(levels, y), 1, s)
        variance = (y - levels[above - 1]) * (levels[above] - y)
        ratio = variance.sum(1) / (y**2).sum(1)
        assert ratio.max() <= NaturalDithering(s, norm=norm).omega(d) + 1e-12


def test_zeros_cost_sign_less_than_the_formula_with_a_true_zero_says() -> None:
    """With sign(0) = 0 the error would be ||x||^2 - 2 ||x||_1^2 / d + ||x||_1^2 nnz / d^2."""
    x = torch.tensor([3.0, 0.0, -1.0, 0.0], dtype=torch.float64)
    sent = Sign().compress(x, At()).unpack()
    assert sent.tolist() == [1, 1, -1, 1]
    assert float(((sent - x) ** 2).sum()) == 10 - 16 / 4 > 10 - 2 * 16 / 4 + 16 * 2 / 16


@pytest.mark.parametrize(("s", "d", "omega"), [(4, 1024, 8), (1, 16, 4), (31, 100, 100 / 961), (16, 1024, 2)])
def test_variance_of_qsgd(s: int, d: int, omega: float) -> None:
    assert QSGD(s).omega(d) == pytest.approx(omega)


def test_levels_are_sparse_as_the_paper_says() -> None:
    """E||C(x)||_0 <= s (s + sqrt(d)), and the bound of Theorem 3.2 on the bits of the Elias code, for normal x."""
    d, x = 1024, torch.randn(1024, generator=torch.Generator().manual_seed(0))
    for s, bound in ((1, 426), (4, 1296), (16, 4337), (31, 8889)):
        compressor = QSGD(s, code="elias")
        parts = [compressor.compress(x, At(i)).parts for i in range(20)]
        assert np.mean([int((level != 0).sum()) for _, level in parts]) <= s * (s + math.sqrt(d))
        assert np.mean([8 * (len(compressor.encode(p, d)) - 3) for p in parts]) <= bound + 7


def test_natural_at_the_ends_of_the_range() -> None:
    largest, tiny = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
    x = torch.tensor([largest, -largest, tiny / 2, -tiny / 2, 0.0, 1.0])
    sent = many(Natural(), x, 200)
    assert set(sent[:, :2].unique().tolist()) == {2.0**127, -(2.0**127)} and (sent[:, 5] == 1).all()
    assert set(sent[:, 2].tolist()) == {0.0, tiny} and set(sent[:, 3].tolist()) == {0.0, -tiny}


def test_norms_of_numbers_whose_squares_do_not_fit() -> None:
    for scale in (1e-35, 1e35):
        x = torch.tensor([3.0, 4.0]) * scale
        for compressor in (QSGD(5), NaturalDithering()):
            assert float(compressor.compress(x, At()).parts[0]) == pytest.approx(5 * scale, rel=1e-6)


def test_large_numbers_whose_norm_overflows() -> None:
    """The largest float stands for the norm, and dithering stays unbiased; a factor of a matrix cannot be sent."""
    x = torch.full((64,), 3e38)
    x[::2] *= -1
    assert torch.equal(Sign().compress(x, At()).unpack(), x)
    for compressor in (QSGD(2), NaturalDithering(2)):
        sent = many(compressor, x).double()
        torch.testing.assert_close(sent.mean(0) / x.double(), torch.ones(64).double(), atol=0.1, rtol=0)
        assert float(((sent / 3e38 - x.double() / 3e38) ** 2).sum(1).mean()) <= 64 * compressor.omega(64)
    for factors in (LowRank(1), PowerSGD(1)):
        with pytest.raises(DivergenceError, match=f"{type(factors).__name__} computed"):
            factors.compress(x, At(shapes=(torch.Size([8, 8]),)))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_numbers_of_16_bits_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"got a vector of torch.bfloat16; expected float32 or float64"):
        COMPRESSORS[name].compress(torch.ones(D, dtype=torch.bfloat16), At())


def test_dithering_levels() -> None:
    """Levels are neighbours of y; what is on a level stays there."""
    x = torch.tensor([1.0, 0.5, -0.25, 0.125, 0.0], dtype=torch.float64)
    assert torch.equal(NaturalDithering(4, norm="linf").compress(x, At()).unpack(), x)
    assert torch.equal(QSGD(8, norm="linf").compress(x, At()).unpack(), x)
    sent = many(NaturalDithering(2, norm="linf"), torch.tensor([1.0, 0.3, 0.6, -0.8]).double(), 200)
    assert set(sent[:, 1].tolist()) == {0, 0.5} and set(sent[:, 2].tolist()) == {0.5, 1}
    assert set(sent[:, 3].tolist()) == {-0.5, -1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_nan_and_infinity(name: str, bad: float) -> None:
    compressor, x = COMPRESSORS[name], torch.stack([vector(seed) for seed in range(3)])
    x[1, 7] = bad
    for given_ in (x[1], x):
        with pytest.raises(DivergenceError, match=r"1 numbers that are NaN or infinite"):
            compressor.compress(given_, At())
    parts = torch.vmap(lambda x: compressor.compress(x, At()).parts)(x)
    seen = [torch.isfinite(p.reshape(3, -1)).all(1) for p in parts if p.is_floating_point()]
    assert torch.stack(seen).all(0).tolist() == [True, False, True], "the message shows which client is at fault"


def test_large_finite_numbers_are_finite() -> None:
    x = torch.full((4,), 3e38)
    assert torch.equal(Identity().compress(x, At()).unpack(), x)


def test_a_random_subset_is_uniform() -> None:
    counts = (many(RandK(k=3, scaled=False), torch.ones(D), 20_000) != 0).sum(0).double()
    chi2 = float(((counts - 20_000 * 3 / D) ** 2 / (20_000 * 3 / D)).sum()) / (1 - 3 / D)
    assert CONFIDENCE < stats.chi2.sf(chi2, D - 1) < 1 - CONFIDENCE
