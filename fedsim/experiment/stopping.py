"""Criteria that end a run before its last round: a metric reaches a target, or no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.checks import number, whole
from fedsim.errors import ConfigError, many


@dataclass(frozen=True)
class Stop:
    """Criterion by which each seed may end before its last round; it is checked whenever the metric is measured.

    Args:
        metric: name of a metric that the run records in every evaluation, such as accuracy, loss, or one of metrics.
        target: stop once the metric is as good as this value; none by default.
        patience: stop after this many evaluations in a row without a better value; none by default.
        scope: the model and the samples on which it is measured; without a server, server/test is the average of the
            models. Scopes of clients need evaluation.clients_every.
    """

    metric: str = "accuracy"
    target: float | None = None
    patience: int | None = None
    scope: str = "server/test"

    def __post_init__(self) -> None:
        for name in ("metric", "scope"):
            if not isinstance(text := getattr(self, name), str) or not text:
                usual = getattr(Stop, name)
                raise ConfigError(f"stop.{name} is {text!r:.80}; expected the name of one, such as {usual}")
        if self.target is None and self.patience is None:
            raise ConfigError(
                "stop has neither target nor patience; expected stop.target, a value of the metric to reach, or"
                " stop.patience, a number of evaluations without improvement"
            )
        if self.target is not None:
            number("stop.target", self.target, lambda v: True, "a finite value of the metric, such as 0.9, or none")
        if self.patience is not None:
            whole("stop.patience", self.patience, 1, ", or none")

    def reason(self, values: Mapping[int, float], lower: bool) -> str | None:
        """Say why to stop after the last of these rounds; None to go on.

        Args:
            values: the metric by round, in order; NaN where it is undefined.
            lower: whether smaller values are better.
        """
        sign = -1.0 if lower else 1.0
        last = list(values.values())[-1]
        if self.target is not None and sign * last >= sign * self.target:
            return f"{self.scope} {self.metric} is {last:.4g} and has reached the target {self.target:.4g}"
        better = [-math.inf if math.isnan(value) else sign * value for value in values.values()]
        best = max(range(len(better)), key=better.__getitem__)   # the first one
        if self.patience is not None and len(better) - 1 - best >= self.patience:
            round, value = list(values.items())[best]
            since = f"since round {round}, where it was {value:.4g}"
            return f"{self.scope} {self.metric} has not improved in {many(self.patience, 'evaluation')} {since}"
        return None


def lower_is_better(metric: str, larger: Mapping[str, bool] | None = None) -> bool:
    """True for losses, distances, gaps to the optimum and costs; False for accuracies.

    Args:
        metric: its name; a suffix, as in ``f1_macro_mean``, makes no difference.
        larger: for further metrics of a run, whether larger is better.
    """
    known = [name for name in larger or () if metric == name or metric.startswith(f"{name}_")]
    if larger and known:
        return not larger[max(known, key=len)]
    return "accuracy" not in metric
