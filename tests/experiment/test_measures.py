"""Metrics besides loss and accuracy: their names, their values, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from algorithms import DPSGD, FedAvg
from fedsim.errors import CodeError, ConfigError
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.measures import Metric, metrics_of
from topologies import Static

HERE = __name__
LOGITS = torch.tensor(np.random.default_rng(0).normal(size=(60, 3)), dtype=torch.float32)
LABELS = torch.from_numpy(np.random.default_rng(1).integers(0, 3, 60))
PREDICTED, P = LOGITS.argmax(1).numpy(), torch.softmax(LOGITS.double(), 1).numpy()


def mean_margin(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.gather(1, targets[:, None]).squeeze(1) - outputs.mean(1)).mean()


def error_rate(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) != targets).float().mean())


error_rate.larger_is_better = False   # type: ignore[attr-defined]


def broken(outputs: Tensor, targets: Tensor) -> float:
    raise KeyError("class")


def one(name: Any) -> Metric:
    (metric,) = metrics_of([name])
    return metric


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1_macro", sk.f1_score(LABELS, PREDICTED, average="macro")),
        ("balanced_accuracy", sk.balanced_accuracy_score(LABELS, PREDICTED)),
        ("roc_auc_ovr", sk.roc_auc_score(LABELS, P, multi_class="ovr")),
        ("neg_log_loss", -sk.log_loss(LABELS, P)),
        ("matthews_corrcoef", sk.matthews_corrcoef(LABELS, PREDICTED)),
        (f"{HERE}.mean_margin", float(mean_margin(LOGITS, LABELS))),
        (f"{HERE}.error_rate", float((LOGITS.argmax(1) != LABELS).float().mean())),
    ],
)
def test_values_are_those_of_the_definition(name: str, expected: float) -> None:
    assert one(name).of(LOGITS, LABELS) == pytest.approx(expected, rel=1e-6)


def test_one_logit_is_a_binary_classifier() -> None:
    y, logit = (LABELS > 0).long(), LOGITS[:, :1]
    assert one("roc_auc").of(logit, y) == pytest.approx(sk.roc_auc_score(y, logit[:, 0]))
    assert one("f1").of(logit[:, 0], y) == pytest.approx(sk.f1_score(y, logit[:, 0] > 0))
    both = torch.cat([-logit, logit], 1) / 2
    assert one("average_precision").of(both, y) == pytest.approx(sk.average_precision_score(y, logit[:, 0]))


def test_regression_and_sequences() -> None:
    x = torch.linspace(0, 1, 9)
    assert one("r2").of(x[:, None], x.square()) == pytest.approx(sk.r2_score(x.square(), x))
    assert one("neg_mean_absolute_error").of(x, x.square()) == pytest.approx(-(x - x.square()).abs().mean().item())
    sequences = one("f1_macro").of(LOGITS.view(12, 5, 3), LABELS.view(12, 5))
    assert sequences == pytest.approx(sk.f1_score(LABELS, PREDICTED, average="macro"))


def test_directions() -> None:
    found = metrics_of(f"f1_macro, perplexity, {HERE}.error_rate, {HERE}.mean_margin")
    assert {metric.name: metric.larger_is_better for metric in found} == {
        "f1_macro": True, "perplexity": False, "error_rate": False, "mean_margin": True,
    }  # fmt: skip


def test_what_is_undefined_has_no_value() -> None:
    same = torch.zeros(60, dtype=torch.int64)
    assert np.isnan(one("roc_auc_ovr").of(LOGITS, same))
    assert np.isnan(one("roc_auc").of(LOGITS[:, :1], same)), "one class has no curve"
    with pytest.raises(ConfigError, match=r"the metric roc_auc is undefined for outputs \[60, 3\].*multi_class"):
        one("roc_auc").of(LOGITS, LABELS, strict=True)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["f1_marco"], "metrics has 'f1_marco'; did you mean 'f1_macro'"),
        (["f1_macro", "f1_macro"], "metrics has 'f1_macro' twice"),
        ("accuracy", "metrics has 'accuracy' twice, or again: every run records loss and accuracy"),
        ([f"{HERE}.nothing"], "has no such class or function"),
        ([3], "metrics has 3; expected a name, or a function"),
        (7, "metrics is 7; expected names or functions"),
    ],
)
def test_unknown_metrics_are_refused_at_once(metrics: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Experiment(FedAvg(), metrics=metrics)


def test_metrics_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"metrics has drift, of what a server receives, and DPSGD has no server"):
        Experiment(DPSGD(), topology=Static(), metrics=["drift"])
    with pytest.raises(ConfigError, match="metrics has perplexity, which is of cross_entropy, and loss is 'squared'"):
        Experiment(FedAvg(), loss="squared", metrics=["perplexity"])
    with pytest.raises(CodeError, match=r"(?s)the metric broken raised KeyError: 'class'\n.*line \d+, in broken"):
        one(broken).of(LOGITS, LABELS)
    with pytest.raises(ConfigError, match=r"<lambda> returned Tensor of shape \[60, \d+\]; expected one number of"):
        one(lambda outputs, targets: outputs).of(LOGITS, LABELS)


def test_a_config_holds_names() -> None:
    experiment = Experiment(FedAvg(), metrics=("f1_macro", error_rate))
    config = to_config(experiment)
    assert config["metrics"] == ["f1_macro", f"{HERE}.error_rate"]
    for read in (experiment, from_config(config)):
        assert [(m.name, m.larger_is_better) for m in read.measures] == [("f1_macro", True), ("error_rate", False)]
    for given in ("f1_macro,perplexity", ["f1_macro", "perplexity"]):
        read = from_config({"algorithm": "FedAvg", "metrics": given})
        assert [metric.name for metric in read.measures] == ["f1_macro", "perplexity"]
    made = to_config(Experiment(FedAvg(), metrics=[lambda outputs, targets: 0.0]))
    with pytest.raises(ConfigError, match="was made in Python"):
        from_config(made)


@pytest.mark.parametrize(
    "write", [lambda o, t: t.clamp_(max=1), lambda o, t: t.numpy().fill(0), lambda o, t: o.zero_()]
)
def test_a_metric_that_writes_is_refused_and_undone(write: Any) -> None:
    outputs, targets = LOGITS.clone(), LABELS.clone()

    def binary(o: Tensor, t: Tensor) -> float:
        write(o, t)
        return 0.5

    with pytest.raises(ConfigError, match=r"the metric binary writes into outputs or targets, .*x\.clone\(\) before"):
        one(binary).of(outputs, targets)
    assert torch.equal(outputs, LOGITS) and torch.equal(targets, LABELS)
