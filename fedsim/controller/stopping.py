"""Apply the stopping criterion of an experiment to a seed, round by round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsim.algorithm import has_server
from fedsim.controller import evaluate
from fedsim.errors import ConfigError
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.stopping import Stop, lower_is_better
from fedsim.record.metrics import Metrics

OF_A_ROUND = ("update_norm", "drift", "contraction", "contraction_bound")
"""Metrics that round 0 lacks."""


class Criterion:
    """The criterion of an experiment for one seed, if it has one.

    Args:
        experiment: the experiment.
        before: what the seed has measured before a resume.
    """

    def __init__(self, experiment: Experiment, before: Metrics) -> None:
        self._stop, self._settings = experiment.stop, experiment.evaluation
        if self._stop is not None:
            serverless = self._stop.scope == "server/test" and not has_server(experiment.algorithm)
            self._scope = "average/test" if serverless else self._stop.scope
            larger = {metric.name: metric.larger_is_better for metric in experiment.measures}
            self._lower = lower_is_better(self._stop.metric, larger)
            self._values = before.series(self._scope, self._stop.metric)

    def reason(self, round: int, rows: Sequence[evaluate.Row]) -> str | None:
        """Why this round is the last one; None if it is not. Metrics that only a last round measures do not count.

        Raises:
            ConfigError: the metric is not measured, which round 0 shows for most metrics.
        """
        stop, settings = self._stop, self._settings
        if stop is None or not settings.due(round):
            return None
        found = {(row.scope, row.metric): row.value for row in rows if row.node is None}
        if evaluate.of_clients(self._scope, None) and not settings.clients_due(round) and round:
            return None
        if (self._scope, stop.metric) not in found:
            if round == 0 and stop.metric in OF_A_ROUND:
                return None
            raise _unmeasured(stop, found, settings.clients_every)
        self._values[round] = found[self._scope, stop.metric]
        return stop.reason(self._values, self._lower) if round else None


def _unmeasured(stop: Stop, found: Iterable[tuple[str, str]], clients_every: int | None) -> ConfigError:
    """Refusal of a criterion whose metric is not among those measured, by scope and name."""
    clients = stop.scope.startswith(("clients/", "nodes/")) and not clients_every
    fix = "; set evaluation.clients_every, to measure clients before the last round" if clients else ""
    known = sorted({name for scope, name in found if scope == stop.scope} or map(" ".join, found))
    return ConfigError(
        f"stop has the metric {stop.metric!r} in scope {stop.scope!r}, which evaluations do not measure{fix}; they"
        f" measure {', '.join(known)}"
    )
