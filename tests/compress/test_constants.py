"""Constants of compressors that are made of others, of matrices, and of floats of few bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.compress import (
    QSGD,
    BernoulliCompressor,
    Blockwise,
    Composed,
    Identity,
    LowPrecision,
    LowRank,
    Natural,
    PowerSGD,
    RandK,
    Scaled,
    Sign,
    Threshold,
    TopK,
)
from tests.compress.cases import At, vector
from tests.compress.test_properties import error, many

SQUARE = At(shapes=(torch.Size([8, 8]),))


def matrix(seed: int, m: int = 8, n: int = 8) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_unbiased_compressor_scaled() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    scaled = Scaled(QSGD(2))
    assert scaled.alpha(64) == 1 / 5 and scaled.omega(64) is None
    assert 0.6 < error(scaled, x, 2000) <= 0.8, "less than 1 - alpha"
    assert error(QSGD(2), x, 2000) > 1, "which the unscaled one exceeds"
    one = QSGD(2).compress(x, At())
    assert torch.equal(scaled.compress(x, At()).unpack(), one.unpack() * 0.2)
    assert scaled.encode(one.parts, 64) == QSGD(2).encode(one.parts, 64)
    assert Scaled(Identity()).omega(5) == 0


def test_sparse_and_quantised() -> None:
    d, a = 100, 0.1
    assert Composed(TopK(0.1), Identity()).alpha(d) == a
    assert Composed(TopK(0.1), Sign()).alpha(d) == pytest.approx(a / 10)
    assert Composed(TopK(0.1), Natural()).alpha(d) == pytest.approx(a * 7 / 8)
    assert Composed(TopK(0.1), QSGD(1)).alpha(d) is None, "omega of 10 values is above 1"
    assert Composed(TopK(0.1), Scaled(QSGD(1))).alpha(d) == pytest.approx(a / (1 + math.sqrt(10)))
    assert Composed(RandK(0.1), Natural()).omega(d) == pytest.approx(10 * 9 / 8 - 1)
    assert Composed(TopK(0.1), QSGD(1)).omega(d) is None and Composed(RandK(0.1), Sign()).alpha(d) is None
    assert Composed(TopK(0.1, scope="layer"), Sign()).alpha(d) == pytest.approx(a / d), "how many are kept is not known"
    x, both = vector(3, d, torch.float64), Composed(TopK(0.1), Natural())
    sent, kept = many(both, x, 500), TopK(0.1).compress(x, At()).unpack()
    assert (sent[:, kept == 0] == 0).all() and (sent[:, kept != 0].abs().log2() % 1 == 0).all()
    assert error(both, x, 500) <= 1 - both.alpha(d)


def test_draws_of_a_sparsifier_and_of_its_values_are_independent() -> None:
    """Coordinates are drawn at random, then rounded up half of the time whichever they are."""
    sent = many(Composed(RandK(k=10, scaled=False), Natural()), torch.full((100,), 1.5).double(), 2000)
    up = (sent == 2).sum(0).double() / (sent != 0).sum(0)
    assert abs(float(up.mean()) - 0.5) < 0.02 and float(up.std()) < 0.06


def test_blocks_have_norms_and_draws_of_their_own() -> None:
    compressor = Blockwise(Sign(), 4)
    x = torch.tensor([1.0, -1, 1, 1, 100, -100, 100, 100, 7, 7])
    assert torch.equal(compressor.compress(x, At()).unpack(), x)
    assert compressor.alpha(10) == 1 / 4 and compressor.alpha(3) == 1 / 3 and compressor.omega(10) is None
    assert Blockwise(QSGD(1), 16).omega(1000) == 4 and Blockwise(QSGD(1), 16).alpha(1000) is None
    packed = compressor.compress(x, At())
    assert int(compressor.paper_bits(packed.parts, 10)) == 3 * 32 + 10
    drawn = many(Blockwise(RandK(k=1), 10), torch.ones(1000).double(), 1)[0].nonzero()[:, 0] % 10
    assert len(drawn) == 100 and len(drawn.unique()) == 10, "each block draws its own"


def test_threshold() -> None:
    worst = torch.full((50,), 0.3 * (1 - 1e-12), dtype=torch.float64)
    worst[7] = -1
    assert error(Threshold(0.3), worst) == pytest.approx(1 - Threshold(0.3).alpha(50), abs=1e-10)
    x = torch.tensor([0.5, -2.0, 0.0, 1.0, -0.99])
    assert Threshold(0.5).compress(x, At()).unpack().tolist() == [0, -2, 0, 1, 0]
    assert Threshold(0.99, relative=False).compress(x, At()).unpack().tolist() == [0, -2, 0, 1, pytest.approx(-0.99)]
    assert Threshold(1.0).compress(x, At()).unpack().tolist() == [0, -2, 0, 0, 0]


def test_bernoulli_has_its_variance_for_every_vector() -> None:
    compressor, x = BernoulliCompressor(0.25), vector(4, dtype=torch.float64)
    assert compressor.omega(38) == 3 and error(compressor, x, 20_000) == pytest.approx(3, rel=0.03)
    assert error(BernoulliCompressor(1.0), x) == 0


@pytest.mark.parametrize("r", [1, 2, 3])
def test_svd_is_the_best_of_its_rank(r: int) -> None:
    m = matrix(r)
    s = np.linalg.svd(m.numpy(), compute_uv=False)
    got = LowRank(r).compress(m.ravel(), SQUARE).unpack().view(8, 8)
    assert np.linalg.matrix_rank(got.numpy(), tol=1e-9) == r
    assert float(((got - m) ** 2).sum()) == pytest.approx(float((s[r:] ** 2).sum()), rel=1e-12)
    eye = torch.eye(8, dtype=torch.float64).ravel()
    sent = LowRank(r).compress(eye, SQUARE).unpack()
    assert float(((sent - eye) ** 2).sum() / 8) == pytest.approx(1 - r / 8) and LowRank(r).alpha(64) == r / 8


def test_power_step_is_a_projection_and_good_on_average() -> None:
    m = matrix(5).ravel()
    sent = torch.vmap(lambda k: PowerSGD(2).compress(m, At(k, SQUARE.shapes)).unpack())(torch.arange(150))
    errors = ((sent - m) ** 2).sum(1) / (m @ m)
    assert float(errors.max()) <= 1 + 1e-12 and float(errors.mean()) <= 1 - PowerSGD(2).alpha(64) + 0.05
    torch.testing.assert_close((sent * (m - sent)).sum(1), torch.zeros(150).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("m", "n"), [(8, 8), (5, 12), (12, 5)])
def test_warm_start_reaches_the_singular_vectors(m: int, n: int) -> None:
    at, compressor = At(shapes=(torch.Size([m, n]), torch.Size([3]))), PowerSGD(2)
    u, _, vh = torch.linalg.svd(matrix(6, m, n), full_matrices=False)
    x = torch.cat([(u * 0.5 ** torch.arange(min(m, n)) @ vh).ravel(), torch.ones(3).double()])
    memory = compressor.start(x, at)
    assert memory.shape == (2 * min(m, n),)
    for _ in range(30):
        packed = compressor.warm(x, at, memory)
        memory = compressor.memory(packed)
    torch.testing.assert_close(packed.unpack(), LowRank(2).compress(x, at).unpack(), atol=1e-6, rtol=0)
    stack = torch.vmap(lambda x, q: compressor.memory(compressor.warm(x, at, q)))(x.expand(3, -1), memory.expand(3, -1))
    torch.testing.assert_close(stack[1], compressor.memory(compressor.warm(x, at, memory)))


def test_vectors_and_narrow_matrices_travel_as_they_are() -> None:
    shapes = torch.Size([6, 2, 3]), torch.Size([10]), torch.Size([2, 2]), torch.Size([]), torch.Size([0])
    x = vector(7, 51)
    packed = LowRank(2).compress(x, At(shapes=shapes))
    assert packed.parts[0].tolist() == [[6, 6], [10, 0], [4, 0], [1, 0], [0, 0]]
    assert packed.parts[1].shape == (24 + 15,) and torch.equal(packed.unpack()[36:], x[36:])
    assert int(LowRank(2).paper_bits(packed.parts, 51)) == 32 * 39


@pytest.mark.parametrize(
    ("form", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("e4m3", torch.float8_e4m3fn)]
)
def test_floats_of_few_bits(form: str, dtype: torch.dtype) -> None:
    """Within the range of the format the decoded value is that of a cast, whatever the scale."""
    x = torch.linspace(-1.99, 1.99, 1001)
    sent = LowPrecision(form).compress(x, At()).unpack()
    near = x.abs() > 0.1
    assert torch.equal(sent[near], x[near].to(dtype).float())
    tiny = LowPrecision(form).compress(x * 2.0**-60, At()).unpack()
    assert torch.equal(tiny, sent * 2.0**-60), "a cast of such small numbers would give zeros"


@pytest.mark.parametrize("form", ["fp16", "bf16", "e4m3", "e5m2"])
def test_rounding_errors_reach_their_bound(form: str) -> None:
    p = {"fp16": 11, "bf16": 8, "e4m3": 4, "e5m2": 3}[form]
    compressor = LowPrecision(form)
    between = torch.full((4,), 1 + 2.0**-p, dtype=torch.float64)       # half-way between 1 and its neighbour
    assert error(compressor, between) == pytest.approx(4.0**-p / (1 + 2.0**-p) ** 2)
    assert error(compressor, between) <= 1 - compressor.alpha(4)
    small = torch.full((100_000,), 2.0**-17 if form.startswith("e") else 2.0**-39, dtype=torch.float64)
    small[0] = 1.0
    assert error(compressor, small) <= 1 - compressor.alpha(100_000)


def test_the_ends_of_the_range_of_float32() -> None:
    for form in ("fp16", "bf16", "e4m3", "e5m2"):
        for most in (3e38, 1e-38, 1e-45):
            x = torch.tensor([most, -most / 2, 0.0])
            sent = LowPrecision(form).compress(x, At()).unpack()
            torch.testing.assert_close(sent, x, rtol=0.15, atol=2e-45)


@pytest.mark.parametrize("form", ["fp16", "bf16", "e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_and_the_smallest_float(form: str, dtype: torch.dtype) -> None:
    compressor, info = LowPrecision(form), torch.finfo(dtype)
    u = {"fp16": 2.0**-11, "bf16": 2.0**-8, "e4m3": 2.0**-4, "e5m2": 2.0**-3}[form]
    x = torch.tensor([info.max, 0.0, -info.max, 0.75 * info.max], dtype=dtype)
    torch.testing.assert_close(compressor.compress(x, At()).unpack(), x, rtol=u, atol=0)
    least = torch.tensor([info.tiny * info.eps, 0, -info.tiny * info.eps], dtype=dtype)
    assert least[0] > 0 and torch.equal(compressor.compress(least, At()).unpack(), least)
