"""Means, intervals and targets over seeds, and how they are written for people."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsim.experiment.stopping import lower_is_better
from fedsim.report.compare import text_of
from fedsim.report.statistics import Estimate, default_target, estimate, holm, p_value


def test_interval_by_hand() -> None:
    result = estimate([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.302653
    assert result.mean == 2.0 and result.seeds == 3
    assert result.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=7)
    result = estimate(values.tolist())
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert result.half_width is not None
    assert (result.mean - result.half_width, result.mean + result.half_width) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(0.93912, 0.0371, 3), "0.939 ± 0.037"),
        (Estimate(0.0004, 0.02, 3), "0.000 ± 0.020"),
        (Estimate(0.0, 0.0, 3), "0.000 ± 0.000"),
        (Estimate(3.2e-7, 4e-8, 3), "3.20e-07 ± 4.00e-08"),
        (Estimate(7.8e-31, None, 1), "7.80e-31 (1 seed)"),
        (Estimate(27_417.3, 7_353.1, 3), "27,417 ± 7,353"),
    ],
)
def test_numbers_for_people(value: Estimate, text: str) -> None:
    assert text_of(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_interval_of_equal_values_and_of_one_value() -> None:
    assert estimate([0.5, 0.5]).half_width == 0
    assert estimate([0.5]).half_width is None


@pytest.mark.parametrize(
    ("finals", "metric", "expected"),
    [
        ([0.8745, 0.2], "accuracy", 0.83),
        ([0.8], "accuracy", 0.76),
        ([1.0], "accuracy", 0.95),
        ([0.0561], "accuracy", 0.053),
        ([0.318, 2.0], "loss", 0.335),
        ([0.969], "loss", 1.02),
        ([1.051], "loss", 1.12),
        ([123.4], "perplexity", 130),
        ([-2.0], "loss", -1.9),
        ([0.0], "accuracy", 0.0),
        ([math.nan, 0.5], "accuracy", 0.475),
        ([math.nan], "accuracy", None),
        ([math.inf], "loss", None),
        ([5e-324], "suboptimality", 5e-324),
    ],
)
def test_default_target(finals: list[float], metric: str, expected: float | None) -> None:
    assert default_target(finals, lower_is_better(metric)) == expected


@pytest.mark.parametrize(("metric", "sign"), [("loss", 1), ("accuracy", -1)])
@pytest.mark.parametrize("scale", [1e-9, 0.01, 0.1, 1, 1e6])
def test_default_target_is_5_to_7_percent_short(metric: str, sign: int, scale: float) -> None:
    for final in np.geomspace(scale, 10 * scale, 400).tolist():
        target = default_target([final], lower_is_better(metric))
        assert target is not None
        assert 0.05 - 1e-9 <= sign * (target / final - 1) <= 0.071, (final, target)
        assert float(f"{target:.3g}") == target


def test_direction_of_metrics() -> None:
    assert lower_is_better("loss_mean") and lower_is_better("consensus_distance")
    assert not lower_is_better("accuracy_worst10")
    for metric in ("objective", "suboptimality", "gradient_norm", "contraction", "bytes_up", "gradient_evaluations"):
        assert lower_is_better(metric), metric


def test_p_is_that_of_a_paired_t_test() -> None:
    a, b = np.random.default_rng(0).normal([[0.3], [0.0]], size=(2, 6))
    assert p_value(estimate((a - b).tolist())) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert p_value(estimate([0.1])) is None and p_value(estimate([0.1, math.nan])) is None
    assert p_value(estimate([0.2, 0.2])) == 0 and p_value(estimate([0.0, 0.0])) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_counts_of_one_seed_are_whole() -> None:
    assert text_of(Estimate(5.0, None, 1), counted=True) == "5 (1 seed)"
    assert text_of(Estimate(5.5, 1.5, 2), counted=True).replace("\N{NO-BREAK SPACE}", " ") == "5.500 ± 1.500"
