"""Components of the user's own in a config: by dotted name, and what has no name."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from algorithms import FedAvg
from fedsim.controller.model import loss_of
from fedsim.data import load
from fedsim.errors import CodeError, ConfigError
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.experiment import Experiment
from fedsim.partition import IidPartitioner
from fedsim.problems import least_squares

HERE = __name__


@dataclass(frozen=True)
class Trim:
    """A rule.

    Args:
        f: how many.
    """

    f: int = 1

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return rows.mean(0)


@dataclass(frozen=True)
class Composed:
    """An algorithm with a component.

    Args:
        rule: what is composed.
        lr: a step size.
    """

    rule: Any = None
    lr: float = 0.1
    trim: Trim = Trim(3)

    def init(self, x: Tensor, clients: Any) -> Tensor:
        return x

    def round(self, s: Tensor, clients: Any) -> Tensor:
        return s


@dataclass(frozen=True)
class Halves:
    """A partitioner of the user's."""

    first: float = 0.5

    def partition(self, labels: np.ndarray, natural: np.ndarray | None, seed: int) -> Any:
        return IidPartitioner(2).partition(labels, natural, seed)


class Net(nn.Sequential):
    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), *[nn.Linear(width, width)] * depth)


def make_net(input_shape: tuple[int, ...], classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), width), nn.Linear(width, classes))


def my_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets).abs()


class MyLoss(nn.Module):
    """The absolute error, as a module."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See ``my_loss``."""
        return my_loss(outputs, targets)


class Huber(nn.Module):
    def __init__(self, delta: float) -> None:
        super().__init__()


def through_yaml(experiment: Experiment) -> Experiment:
    return from_config(yaml.safe_load(yaml.safe_dump(to_config(experiment))))


def config(**settings: Any) -> dict[str, Any]:
    return {"algorithm": "FedAvg", **settings}


def test_dotted_names_of_components() -> None:
    settings = {
        "algorithm": {"name": f"{HERE}.Composed", "lr": 0.5, "trim": {"f": 2}},
        "partition": {"name": f"{HERE}.Halves", "first": 0.25},
        "loss": f"{HERE}.my_loss",
    }
    experiment = from_config(settings)
    assert (experiment.algorithm, experiment.partition) == (Composed(lr=0.5, trim=Trim(2)), Halves(0.25))
    assert experiment.loss is my_loss
    written = to_config(experiment)
    assert written["loss"] == f"{HERE}.my_loss"
    assert written["algorithm"] == {"name": f"{HERE}.Composed", "rule": None, "lr": 0.5, "trim": {"f": 2}}
    assert through_yaml(experiment) == experiment


def test_a_class_of_a_loss_is_made_for_each_seed() -> None:
    experiment = from_config(config(loss=f"{HERE}.MyLoss", data={"name": "digits"}))
    assert experiment.loss is MyLoss and through_yaml(experiment) == experiment == replace(experiment, loss=MyLoss)
    assert to_config(experiment)["loss"] == f"{HERE}.MyLoss"
    one, other = (loss_of(experiment, load("digits")) for _ in range(2))
    assert isinstance(one, MyLoss) and one is not other
    for loss, message in (
        (Huber, r"loss is the class Huber, missing a required argument: 'delta'; expected a class without"),
        (Halves, r"loss is the class Halves; expected one of auto, .*, or a torch\.nn\.Module"),
        ("nets.myloss", r"or a function; in Python, give the function itself: loss=nets\.myloss$"),
    ):
        wrong: Any = loss
        with pytest.raises(ConfigError, match=message):
            Experiment(FedAvg(), loss=wrong)


def test_components_of_components() -> None:
    for rule in (Trim(2), None):
        experiment = Experiment(FedAvg(), aggregate=rule)
        assert through_yaml(experiment) == experiment
    trim = {"name": f"{HERE}.Trim", "f": "4"}
    expected = Experiment(FedAvg(), aggregate=Trim(4))
    assert from_config({"algorithm": "FedAvg", "aggregate": trim}) == expected
    assert from_config({"algorithm": {"name": "FedAvg", "aggregate": trim}}) == expected   # where it was in 0.1.0
    with pytest.raises(ConfigError, match=r"algorithm\.aggregate is now aggregate, and both are given"):
        from_config({"algorithm": {"name": "FedAvg", "aggregate": trim}, "aggregate": trim})
    with pytest.raises(ConfigError, match=r"aggregate\.ff: did you mean 'f'"):
        from_config({"algorithm": "FedAvg", "aggregate": {"name": f"{HERE}.Trim", "ff": 4}})
    with pytest.raises(ConfigError, match=r"aggregate is 'Trim'.*my\.module\.Class"):
        from_config({"algorithm": "FedAvg", "aggregate": "Trim"})


@pytest.mark.parametrize(
    "place", ["schedule", "uplink", "aggregate", "loss", "model", "partition", "skew", "algorithm"]
)
@pytest.mark.parametrize(
    "command", [{"name": "subprocess.Popen", "shell": True}, {"name": "subprocess.getoutput"}, {"name": "os.system"}]
)
def test_nothing_of_a_file_is_called_to_see_what_it_is(place: str, command: dict[str, Any], tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for key in ("args", "cmd", "command"):
        with pytest.raises(ConfigError, match=rf"{place}(\.\w+)? is |unknown setting {place}|{place}\.\w+ is missing"):
            from_config({**config(), place: {**command, key: f"touch {touched}"}})
    assert not touched.exists()


@pytest.mark.parametrize(
    ("model", "width"), [({"name": f"{HERE}.Net", "width": 7}, 7), ({"name": f"{HERE}.make_net"}, 4)]
)
def test_model_of_the_users_is_built_under_the_seed(model: dict[str, Any], width: int) -> None:
    experiment = from_config(config(model=model))
    assert through_yaml(experiment) == experiment

    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        assert not isinstance(experiment.model, nn.Module)
        return next(experiment.model.build((1, 8, 8), 10).parameters()).detach()

    assert weights(1).shape == (width, 64)
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config(model=f"{HERE}.Net"), r"model\.width is missing; expected a whole number"),
        (config(model={"name": f"{HERE}.Net", "width": "x"}), r"model\.width is 'x'"),
        (config(model={"name": f"{HERE}.make_net", "classes": 3}), r"unknown setting model\.classes"),
        (config(model=f"{HERE}.Halves"), r"Halves', which has no build\(\)"),
        ({"algorithm": "fedsim.models.MLP"}, r"which has no round\(\); expected a class that can serve as algorithm"),
        (
            {"algorithm": "FedAvg", "uplink": "fedsim.compress.TopK"},
            r"no directions\(\); .* did you mean --uplink EF14 --uplink\.compressor fedsim\.compress\.TopK \(or Choco",
        ),
        (
            {"algorithm": "FedAvg", "topology": "topologies.Ring"},
            r"no matrix\(\); .* did you mean --topology Static --topology\.graph topologies\.Ring\?",
        ),
        (
            {"algorithm": "FedAvg", "aggregate": "fedsim.compress.TopK"},
            r"; did you mean --uplink EF14 --uplink\.compressor fedsim\.compress\.TopK \(or Choco",
        ),
        (config(loss="no_such_package.f"), "there is no module 'no_such_package'"),
        (config(loss="fedsim.models.losses.square"), r"no such class or function; did you mean 'squared'\?"),
        (config(loss=".f"), "expected a dotted name"),
    ],
)
def test_errors_of_dotted_names(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config(settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [("import no_such_package", "No module named 'no_such"), ("f = 1 / 0", "ZeroDivisionError"), ("f(", "Syntax")],
)
def test_error_inside_the_users_module_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "broken_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(CodeError, match=rf"importing broken_module raised .*{message}"):
        from_config(config(loss="broken_module.f"))


@pytest.mark.parametrize(
    ("settings", "key", "what"),
    [
        ({"data": load("digits")}, "data", "Dataset 'digits'"),
        ({"data": least_squares(n=2, d=2)}, "data", "Problem 'least_squares'"),
        ({"model": nn.Linear(64, 10)}, "model", "torch.nn.modules.linear.Linear"),
        ({"loss": lambda outputs, targets: outputs}, "loss", f"{HERE}.<lambda>"),
    ],
    ids=["dataset", "problem", "module", "lambda"],
)
def test_python_objects_are_described_and_refused(settings: dict[str, Any], key: str, what: str) -> None:
    written = yaml.safe_load(yaml.safe_dump(to_config(replace(Experiment(FedAvg()), **settings))))
    assert written[key] == {"python": what}
    with pytest.raises(ConfigError, match=rf"{key} was made in Python .*fedsim\.resume\(path, experiment\)"):
        from_config(written)


def test_class_of_a_script_keeps_its_settings() -> None:
    @dataclass(frozen=True)
    class Local(Composed):
        pass

    written = to_config(Experiment(Local(lr=0.3)))["algorithm"]
    assert written["python"].endswith("<locals>.Local") and written["lr"] == 0.3
