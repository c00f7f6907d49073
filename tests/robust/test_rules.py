"""Rules against hand-computed rows, and against transcriptions of their papers on random rows with outliers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.robust import (
    AKSEL,
    ARC,
    CAF,
    MDA,
    NNM,
    RULES,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clipping,
    CoordinateMedian,
    FlagAggregator,
    GeometricMedian,
    Jointly,
    Krum,
    MeaMed,
    Mean,
    MoNNA,
    MultiKrum,
    NormMean,
    Phocas,
    SelfCenteredClipping,
    TrimmedMean,
)
from fedsim.robust.coordinates import ascending, nearest
from fedsim.robust.rule import Occasion, RobustRule
from fedsim.robust.stack import COLUMNS, RowStack
from fedsim.seeds import uniform_of
from tests.robust import transcriptions as paper

GOLDEN = torch.tensor([(1, 2), (2, 1), (1.5, 1.5), (1, 1), (2, 2), (100, -100), (100, -100)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Krum(2), (1.5, 1.5)),
        (MultiKrum(2, m=3), (1.5, 1.5)),
        (TrimmedMean(2), (1.833333, 1.166667)),
        (CoordinateMedian(), (2, 1)),
        (MeaMed(2), (1.5, 1.5)),
        (Phocas(2), (1.5, 1.5)),
        (GeometricMedian(), (1.905216, 1.090114)),
        (GeometricMedian(iterations=200, nu=1e-6), (1.785661, 1.208525)),
        (CenteredClipping(1.0), (0.696739, 0.292678)),
        (CenteredClipping(1.0, iterations=50), (1.797394, 1.193915)),
        (Bulyan(1), (1.5, 1.166667)),
        (MDA(2), (1.5, 1.5)),
        (AKSEL(2), (1.5, 1.5)),
        (NNM(CoordinateMedian(), f=2), (1.5, 1.5)),
        (NNM(TrimmedMean(2)), (1.5, 1.5)),
        (ARC(Mean(), f=2), (1.6428571429, 0.5)),
        (Bucketing(Mean()), (38.4375, -36.5625)),          # of (1.5, 1.5), (1.25, 1.25), (51, -49), (100, -100)
        (MoNNA(2, own=3), (1.5, 1.5)),
    ],
)
def test_hand_computed_rows(rule: RobustRule, expected: tuple[float, float]) -> None:
    assert rule(GOLDEN).tolist() == pytest.approx(expected, abs=2e-6)
    assert rule(GOLDEN.float()).tolist() == pytest.approx(expected, abs=1e-5)


def test_hand_computed_mixtures() -> None:
    rows = RowStack(GOLDEN)
    mixed = NNM(Mean(), f=2).mixture(rows, Occasion()) @ GOLDEN
    torch.testing.assert_close(mixed[:5], torch.full((5, 2), 1.5, dtype=torch.float64))
    torch.testing.assert_close(mixed[5:], torch.tensor([[40.9, -39.3]] * 2, dtype=torch.float64))
    clipped = ARC(Mean(), f=2).mixture(rows, Occasion()) @ GOLDEN
    assert clipped[5:].norm(dim=1).tolist() == pytest.approx([2.8284271247] * 2)


def rows(n: int = 15, d: int = 40, f: int = 3, seed: int = 0) -> Tensor:
    """Honest rows around a vector, and the last ``f`` somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.cat([x + noise[: n - f], 3 * noise[n - f :] - 2 * x])


N, F = 15, 3
EQUAL = np.full(N, 1 / N)
CASES: dict[str, tuple[RobustRule, Callable[[np.ndarray], np.ndarray]]] = {
    "norm-mean": (NormMean(), lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)),
    "median": (CoordinateMedian(), lambda x: np.median(x, 0)),
    "trimmed": (TrimmedMean(F), lambda x: paper.trimmed(x, F)),
    "meamed": (MeaMed(F), lambda x: paper.nearest(x, np.median(x, 0), N - F)),
    "phocas": (Phocas(F), lambda x: paper.nearest(x, paper.trimmed(x, F), N - F)),
    "geometric": (GeometricMedian(7, 0.3), lambda x: paper.geometric_median(x, EQUAL, 7, 0.3)),
    "krum": (Krum(F), lambda x: x[paper.krum_order(x, F)[0]]),
    "krum of others": (Krum(F, "n-f-1", squared=False), lambda x: x[paper.krum_order(x, F, N - F - 1, 0.5)[0]]),
    "multi-krum": (MultiKrum(F), lambda x: paper.multi_krum(x, F, N - F - 2)),
    "bulyan": (Bulyan(F), lambda x: paper.bulyan(x, F)),
    "clipping": (CenteredClipping(3.0, 4), lambda x: paper.clip(x, np.zeros(x.shape[1]), EQUAL, 3.0, 4)),
    "mda": (MDA(F), lambda x: paper.mda(x, F)),
    "caf": (CAF(F), lambda x: paper.caf(x, F)),
    "monna": (MoNNA(F, own=4), lambda x: paper.around(x, x[4], N - F)),
    "aksel": (AKSEL(F), lambda x: paper.around(x, np.median(x, 0), N - F)),
    "aksel mid": (AKSEL(F, keep="mid"), lambda x: paper.around(x, np.median(x, 0), 8)),
    "flag": (FlagAggregator(), lambda x: paper.flag(x, 8)),
    "flag, few": (FlagAggregator(m=2), lambda x: paper.flag(x, 2)),
    "flag, pairs": (FlagAggregator(m=3, lam=2.0), lambda x: paper.flag(x, 3, 2.0)),
    "nnm, krum": (NNM(Krum(F)), lambda x: paper.nnm(x, F)[paper.krum_order(paper.nnm(x, F), F)[0]]),
    "nnm, flag": (NNM(FlagAggregator(), f=F), lambda x: paper.flag(paper.nnm(x, F), 8)),
    "nnm, median": (NNM(CoordinateMedian(), f=F), lambda x: np.median(paper.nnm(x, F), 0)),
    "nnm, clipping": (
        NNM(CenteredClipping(3.0, 2), f=F), lambda x: paper.clip(paper.nnm(x, F), np.zeros(x.shape[1]), EQUAL, 3.0, 2)
    ),
    "jointly": (Jointly(TrimmedMean(F)), lambda x: paper.trimmed(x, F)),
    "clipping, median": (
        Clipping(CoordinateMedian(), c=5.0),
        lambda x: np.median(x * np.minimum(1, 5 / np.linalg.norm(x, axis=1, keepdims=True)), 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("f", [0, 3])
def test_rules_are_those_of_their_papers(name: str, f: int) -> None:
    rule, transcription = CASES[name]
    for seed in range(3):
        x = rows(f=f, seed=seed)
        expected = transcription(x.numpy())
        np.testing.assert_allclose(rule(x).numpy(), expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(rule(x.float()).numpy(), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("lam", [0.0, 1.0, 8.0])
def test_the_released_code_of_flag_aggregator(lam: float) -> None:
    x = rows(7, 300, 1)
    start = torch.rand(300, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    expected = paper.flag_code(x.numpy(), np.linalg.qr(start.numpy())[0], lam)
    np.testing.assert_allclose(FlagAggregator(lam=lam, form="code")(x).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_flag_aggregator_to_the_letter_is_not_robust() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2000, generator=generator, dtype=torch.float64)
    honest = mean + torch.randn(12, 2000, generator=generator, dtype=torch.float64)
    x = torch.cat([honest, 100 * torch.rand(3, 2000, generator=generator, dtype=torch.float64)])

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a, b, 0))

    center = honest.mean(0)
    assert cosine(FlagAggregator(normalise=False)(x), center) < 0.3 < 0.9 < cosine(FlagAggregator()(x), center)
    assert cosine(FlagAggregator()(x), NormMean()(x)) > 0.95   # near the mean of unit vectors, and not equal to it
    assert cosine(FlagAggregator(m=15)(x), NormMean()(x)) > 1 - 1e-12   # everything is in the subspace


SHARED = [
    Mean(), NormMean(), CoordinateMedian(), TrimmedMean(F), MeaMed(F), Phocas(F), GeometricMedian(), Krum(F),
    MultiKrum(F), Bulyan(F), CenteredClipping(), MDA(F), CAF(F), MoNNA(F, own=0), AKSEL(F), FlagAggregator(),
    NNM(TrimmedMean(F)), Clipping(), ARC(TrimmedMean(F)), Bucketing(TrimmedMean(2)), Jointly(TrimmedMean(F)),
]  # fmt: skip


def test_the_list_is_complete() -> None:
    assert {type(rule) for rule in SHARED} | {SelfCenteredClipping} == set(RULES)


@pytest.mark.parametrize("rule", SHARED, ids=lambda rule: type(rule).__name__)
def test_rules_follow_what_all_rules_follow(rule: RobustRule) -> None:
    x = rows()
    before = x.clone()
    out = rule(x)
    assert torch.equal(x, before) and out.shape == (40,) and out.dtype == x.dtype
    if not isinstance(rule, Bucketing | MoNNA):            # the order of the others' rows does not matter
        order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(rule(x[order]), out, rtol=1e-7, atol=1e-9)
    one = torch.ones(N, 40)
    direction = rule(one) if not isinstance(rule, NormMean | FlagAggregator | CenteredClipping | Clipping) else None
    if direction is not None:                              # equal rows: that row
        torch.testing.assert_close(direction, torch.ones(40))


@pytest.mark.parametrize("rule", SHARED[1:], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("size", [1e4, 1e20, 3e37])
def test_outliers_of_any_size_lose_no_digits(rule: RobustRule, size: float) -> None:
    """float32 rows whose squares overflow, or hide the others' digits."""
    x = rows(d=200).float()
    x[-F:] = size * torch.sign(x[-F:])
    honest = x[:-F].double()
    out = rule(x).double()
    assert torch.isfinite(out).all()
    close = honest.sub(honest.mean(0)).norm(dim=1).max()
    bounded = isinstance(rule, NormMean | FlagAggregator | CenteredClipping | Clipping | Bucketing)
    assert bounded or float((out - honest.mean(0)).norm()) <= 1.5 * float(close)
    if isinstance(rule, MeaMed | Phocas | Bulyan | TrimmedMean):
        x[-F:] = 1e3 * torch.sign(x[-F:])
        torch.testing.assert_close(out, rule(x).double(), rtol=1e-5, atol=1e-5)


def test_distances_between_close_rows_are_exact() -> None:
    far = 1e4 + torch.randn(9, 3000, generator=torch.Generator().manual_seed(0)) * 1e-1
    assert torch.equal(Krum(2)(far), Krum(2)(far.double() - 1e4).float() + 1e4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_of_coordinates_are_sorted(dtype: torch.dtype) -> None:
    for n in (1, 2, 50):
        x = torch.randn(n, 300, generator=torch.Generator().manual_seed(n)).to(dtype)
        before = x.clone()
        stack = RowStack(x)
        assert torch.equal(ascending(stack.transposed(slice(0, 300))), x.sort(0).values.T) and torch.equal(x, before)
        assert torch.equal(ascending(stack.transposed(slice(7, 30))), x[:, 7:30].sort(0).values.T)


@pytest.mark.parametrize(("n", "f"), [(9, 0), (9, 4), (9, 5), (9, 8), (40, 13)])
def test_values_nearest_to_a_center(n: int, f: int) -> None:
    x = torch.randn(n, 60, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    center = 2 * torch.randn(60, generator=torch.Generator().manual_seed(f), dtype=torch.float64)
    expected = paper.nearest(x.numpy(), center.numpy(), n - f)
    np.testing.assert_allclose(nearest(ascending(x.T.clone()), center, f).numpy(), expected)


def test_mixed_and_chosen_rows_transposed() -> None:
    x, m = rows(d=40), torch.rand(9, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for stack in (RowStack(x), RowStack(x).mixed(m)):
        values = stack.transposed(slice(5, 30), [1, 4, 5])
        assert values.is_contiguous()
        torch.testing.assert_close(values, stack.block(slice(5, 30))[[1, 4, 5]].T)


def test_threads_change_no_bit() -> None:
    x = rows(d=5 * COLUMNS["cpu"] // 2).float()
    for rule in (TrimmedMean(F), Bulyan(F), NNM(MeaMed(F)), AKSEL(F), CenteredClipping(1.0)):
        one = rule(x)
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            assert torch.equal(rule(x), one)
        finally:
            torch.set_num_threads(before)


def test_weights() -> None:
    x, w = rows(), torch.arange(1.0, N + 1, dtype=torch.float64) / (N * (N + 1) / 2)
    torch.testing.assert_close(Mean()(x, w), w @ x)
    torch.testing.assert_close(NormMean()(x, w), (w / x.norm(dim=1)) @ x)
    expected = paper.geometric_median(x.numpy(), w.numpy(), 3, 0.1)
    np.testing.assert_allclose(GeometricMedian()(x, w).numpy(), expected)
    expected = paper.clip(x.numpy(), np.ones(40), w.numpy(), 2.0, 1)
    np.testing.assert_allclose(CenteredClipping(2.0)(x, w, Occasion(last=torch.ones(40))).numpy(), expected)
    for rule in (Krum(F), NNM(Mean(), f=F), Bucketing(Mean()), FlagAggregator()):
        with pytest.raises(ConfigError, match=r"treats all rows alike, but their weights are unequal; set weights to"):
            rule(x, w)


def test_a_nodes_own_row() -> None:
    x, w = rows(), torch.full((N,), 1 / N, dtype=torch.float64)
    at = Occasion(own=4)
    np.testing.assert_allclose(MoNNA(F)(x, w, at).numpy(), paper.around(x.numpy(), x[4].numpy(), N - F))
    off = x - x[4]
    expected = x[4] + (w * (2 / off.norm(dim=1)).clamp(max=1)) @ off
    torch.testing.assert_close(SelfCenteredClipping(2.0)(x, w, at), expected)
    with pytest.raises(ConfigError, match=r"MoNNA\.own is None; expected the number of a trusted row below 15"):
        MoNNA(F)(x)
    with pytest.raises(ConfigError, match="SelfCenteredClipping needs a node's own row"):
        SelfCenteredClipping()(x)


def test_buckets_are_drawn_by_the_key() -> None:
    x, key = rows(f=0), torch.tensor(12)
    order = uniform_of(key, N).argsort()
    buckets = torch.stack([x[part].mean(0) for part in torch.split(order, 4)])
    expected = torch.from_numpy(np.median(buckets.numpy(), 0))
    torch.testing.assert_close(Bucketing(CoordinateMedian(), s=4)(x, at=Occasion(key)), expected)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Krum(7), r"Krum with f = 7 needs 2f \+ 3 = 17 rows or more, and there are 15; expected f at most 6"),
        (Bulyan(4), r"needs 4f \+ 3 = 19 rows or more, and there are 15; expected f at most 3"),
        (NNM(TrimmedMean(8), f=2), r"TrimmedMean with f = 8 needs 2f \+ 1 = 17 rows"),
        (Bucketing(TrimmedMean(4)), r"TrimmedMean with f = 4 needs 2f \+ 1 = 9 rows or more, and there are 8"),
        (MultiKrum(3, m=13), r"MultiKrum\.m is 13; expected at most n - f = 12"),
        (FlagAggregator(m=16), r"FlagAggregator\.m is 16; expected at most the 15 rows"),
    ],
)  # fmt: skip
def test_too_few_rows(rule: RobustRule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(rows())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Krum(-1), lambda: Krum(1.5), lambda: Krum(1, "n"), lambda: GeometricMedian(nu=0), lambda: Clipping(c=0),  # type: ignore[arg-type]
        lambda: CenteredClipping(math.nan), lambda: Bucketing(s=0), lambda: NNM(Mean()), lambda: NNM(TrimmedMean),  # type: ignore[arg-type]
        lambda: FlagAggregator(lam=-1), lambda: FlagAggregator(form="code", normalise=False), lambda: MoNNA(1, own=-1),
        lambda: ARC(CoordinateMedian()), lambda: Bucketing(MoNNA(1)), lambda: AKSEL(1, keep="all"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make: Callable[[], RobustRule]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()


def test_rows_whose_distances_are_tiny_parts_of_their_norms() -> None:
    """As of nodes that nearly agree: the distances of float64 rows do not vanish in the rounding of their norms."""
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((9, 5)))
    near = 1000 + 1e-7 * x                                 # differences are exact multiples of 1e-13
    off = near - near[0]
    for rule in (Krum(f=2), MultiKrum(f=2), MDA(f=3), NNM(TrimmedMean(f=2)), Bulyan(f=1)):
        torch.testing.assert_close(rule(near) - near[0], rule(off), rtol=0, atol=1e-12)
