"""Further metrics of an experiment: scikit-learn's by name, perplexity, the user's own functions, sizes of updates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.purity import intact
from fedsim.errors import ConfigError, explained, suggest

OF_LOSS = {"perplexity": False}
"""Metrics that follow from the mean loss, and whether larger is better."""
OF_ROUNDS = {"update_norm": False, "drift": False}
"""Metrics of the updates of a round."""
RECORDED = ("loss", "accuracy")
"""Metrics of every run."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric of outputs and targets.

    Attributes:
        name: its name in the records.
        larger_is_better: whether a larger value is a better one.
        function: maps outputs ``[N, ...]`` and targets ``[N, ...]``, on the CPU, to a number; None if the metric
            follows from the loss or from updates.
        lenient: ``function`` raises ValueError where the metric is undefined, as the ROC of one class.
    """

    name: str
    larger_is_better: bool
    function: Callable[[Tensor, Tensor], Any] | None = None
    lenient: bool = False

    @property
    def of_outputs(self) -> bool:
        """True if it is computed from outputs and targets."""
        return self.function is not None

    def of(self, outputs: Tensor, targets: Tensor, strict: bool = False) -> float:
        """Value of the metric; NaN where it is undefined.

        Raises:
            CodeError: the function raised.
            ConfigError: it wrote into outputs or targets, or did not return a number; or, if ``strict``, the metric is
                undefined.
        """
        assert self.function is not None
        try:
            name, given = f"the metric {self.name}", () if self.lenient else (outputs, targets)
            with explained(name), intact(name, "outputs or targets", given, ConfigError), warnings.catch_warnings():
                if self.lenient:
                    warnings.simplefilter("ignore")        # of classes that do not occur
                value = self.function(outputs, targets)
        except _UndefinedError:
            if strict:
                raise
            return math.nan
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, int | float | np.number):
            what = f"of shape {list(value.shape)}" if isinstance(value, Tensor | np.ndarray) else f"{value!r:.40}"
            raise ConfigError(
                f"the metric {self.name} returned {type(value).__name__} {what}; expected one number of"
                f" outputs {list(outputs.shape)} and targets {list(targets.shape)}"
            )
        return float(value)


class _UndefinedError(ConfigError):
    """A metric has no value for these samples."""


def metrics_by_name() -> dict[str, str]:
    """Names that the setting ``metrics`` takes, with what they are, besides those of a user's own functions."""
    from sklearn.metrics import get_scorer_names  # slow to import

    own = {
        "perplexity": "exp of the mean cross-entropy; less is better",
        "update_norm": "norm by which the server's model moved in a round",
        "drift": "root mean square distance of what clients sent in a round to its mean",
    }
    return own | dict.fromkeys(get_scorer_names(), "scikit-learn's scorer of this name; more is better")


def as_tuple(given: str | Sequence[Any]) -> tuple[Any, ...]:
    """The names or functions of the setting ``metrics``, which may be one text with commas."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if isinstance(given, str) else tuple(given)


def metrics_of(given: Any) -> tuple[Metric, ...]:
    """Resolve the setting ``metrics``: names, or functions of outputs and targets.

    Raises:
        ConfigError: a name is unknown, or occurs twice.
    """
    if not isinstance(given, Sequence):
        raise ConfigError(f"metrics is {given!r:.80}; expected names or functions, such as ['f1_macro', my_function]")
    found = tuple(map(_resolved, as_tuple(given)))
    names = [*RECORDED, *(metric.name for metric in found)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"metrics has {name!r} twice, or again: every run records {' and '.join(RECORDED)}")
    return found


def _resolved(given: Any) -> Metric:
    if isinstance(given, Mapping) and "python" in given:
        raise ConfigError(
            f"the metric {given['python']} was made in Python, which a config file cannot hold; resume from Python with"
            " fedsim.resume(path, experiment)"
        )
    if isinstance(given, str) and given in OF_LOSS | OF_ROUNDS:
        return Metric(given, (OF_LOSS | OF_ROUNDS)[given])
    if isinstance(given, str):
        return _named(given)
    if not callable(given):
        raise ConfigError(f"metrics has {given!r:.80}; expected a name, or a function of outputs and targets")
    name = getattr(given, "__name__", type(given).__name__)
    return Metric(name, bool(getattr(given, "larger_is_better", True)), given)


def _named(name: str) -> Metric:
    from sklearn.metrics import get_scorer, get_scorer_names  # slow to import

    if name in get_scorer_names():
        return Metric(name, True, partial(_scored, name, get_scorer(name)), lenient=True)
    if "." in name:
        from fedsim.experiment.config.names import imported

        return _resolved(imported(name, "metrics"))
    known, own = [*OF_LOSS, *OF_ROUNDS, *get_scorer_names()], "my.module.function (your own)"
    raise ConfigError(f"metrics has {name!r}; {suggest(name, known, see='fedsim list metrics', own=own)}")


def _scored(name: str, scorer: Any, outputs: Tensor, targets: Tensor) -> float:
    """Score outputs by one of scikit-learn's scorers, for all of which larger is better."""
    if not isinstance(targets, Tensor):
        raise ConfigError(f"the metric {name} needs one tensor of targets, got a {type(targets).__name__}")
    rows, y = np.arange(targets.numel())[:, None], targets.reshape(-1).numpy()
    try:
        return float(scorer(_estimator(outputs, targets), rows, y))
    except (ValueError, AttributeError) as error:
        forms = ", ".join(_forms_of(name)) if "multiclass" in str(error) else ""
        raise _UndefinedError(
            f"the metric {name} is undefined for outputs {list(outputs.shape)} and targets of"
            f" {len(np.unique(y))} values: {error}{forms and f' Choose one of {forms}'}"
        ) from error


def _forms_of(name: str) -> list[str]:
    """Forms of a metric for several classes, such as f1_macro of f1."""
    from sklearn.metrics import get_scorer_names

    known = set(get_scorer_names())
    return [form for how in ("macro", "micro", "weighted", "ovr") if (form := f"{name}_{how}") in known]


def _estimator(outputs: Tensor, targets: Tensor) -> Any:
    """A fitted estimator of scikit-learn that predicts these outputs."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    if targets.is_floating_point():

        class Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
            def predict(self, rows: Any) -> Any:
                return outputs.reshape(-1).numpy()

        return Regressor()
    one_logit = outputs.shape in (targets.shape, (*targets.shape, 1))
    logits = outputs.double().reshape(targets.numel(), -1)
    p = torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], 1) if one_logit else torch.softmax(logits, 1)

    class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        classes_ = np.arange(p.shape[1])

        def predict(self, rows: Any) -> Any:
            return (logits[:, 0] > 0).long().numpy() if one_logit else logits.argmax(1).numpy()

        def predict_proba(self, rows: Any) -> Any:
            return p.numpy()

    return Classifier()
