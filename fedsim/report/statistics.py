"""Statistics over seeds: Student-t intervals, p values, and the target up to which costs are counted.

The interval is mean ± t(0.975, n - 1) · s / √n, with the sample standard deviation s. It assumes roughly normal values
over seeds. Intervals of several runs or metrics are not corrected for their number; `holm` corrects p values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: arithmetic mean; NaN if a seed diverged.
        half_width: half width of the 95 % Student-t interval; None for a single seed, which has none.
        seeds: number of seeds.
    """

    mean: float
    half_width: float | None
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of values, one for each seed."""
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]), None, n)
    from scipy.special import stdtrit  # Student's t; slow to import, and scipy.stats, which has it too, slower

    t = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(float(np.mean(values)), t * float(np.std(values, ddof=1)) / math.sqrt(n), n)


def estimates(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Means ``[T]`` and half widths ``[T]`` over the S seeds of ``values [S, T]``; see `estimate`."""
    n, mean = len(values), values.mean(axis=0)
    if n < 2:
        return mean, None
    from scipy.special import stdtrit

    return mean, stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(axis=0, ddof=1) / math.sqrt(n)


def p_value(difference: Estimate) -> float | None:
    """Two-sided p value of a mean of paired differences against 0 (Student's t); None if there is no interval."""
    if difference.half_width is None or math.isnan(difference.mean):
        return None
    if difference.half_width == 0:
        return float(difference.mean == 0)
    from scipy.special import stdtr, stdtrit

    freedom = difference.seeds - 1
    t = abs(difference.mean) / difference.half_width * stdtrit(freedom, (1 + CONFIDENCE) / 2)
    return float(2 * stdtr(freedom, -t))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the same order; they bound the family-wise error rate."""
    order, corrected, largest = sorted(range(len(p)), key=lambda index: p[index]), [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = corrected[index] = max(largest, min(1.0, (len(p) - rank) * p[index]))
    return corrected


def best(values: Sequence[float] | np.ndarray, lower: bool) -> float:
    """The least value if ``lower`` values are better, otherwise the largest; NaN if all are NaN."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.min() if lower else known.max()) if len(known) else math.nan


def first_reached(values: np.ndarray, target: float, lower: bool) -> int | None:
    """Index of the first of the values ``[T]`` that is as good as the target; None if there is none."""
    hits = np.flatnonzero(values <= target if lower else values >= target)
    return int(hits[0]) if len(hits) else None


def default_target(finals: Sequence[float], lower: bool) -> float | None:
    """A round number 5 to 7 % short of the best of these mean final values; None if all diverged.

    The value 5 % short of the best is moved further away to the next multiple of a step, which is 1, 2 or 5 times a
    power of ten and at most 2 % of the value. An accuracy of 0.8745 gives 0.83, a loss of 0.318 gives 0.335.
    """
    reachable = best(finals, lower)
    if not math.isfinite(reachable):
        return None
    sign = 1 if lower else -1
    exact = reachable + sign * 0.05 * abs(reachable)
    if abs(exact) < 1e-300:
        return exact
    widest = 0.02 * abs(exact)
    power = math.floor(math.log10(widest))
    step = max(m * 10.0**power for m in (1, 2, 5) if m == 1 or m * 10.0**power <= widest)
    steps = sign * math.ceil(sign * exact / step - 1e-9)  # 0.95 * 0.8 is not quite 0.76
    return round(steps * step, -power)
