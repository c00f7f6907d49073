"""Bad parts of an experiment made in Python are refused at construction, or before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms import DCGD, DFedAvg, FedAvg, FedBuff
from fedsim import Bernoulli, Clients, Data, Evaluation, Execution, Experiment, FixedSize, LocalWork, run
from fedsim.compress import Identity
from fedsim.controller.loading import data_hash, resolve_data
from fedsim.data import Dataset, Split
from fedsim.errors import CodeError, ConfigError, DataError, ModelError, PartitionError
from fedsim.experiment.schedule import Cosine
from fedsim.models import MLP
from fedsim.partition import IidPartitioner, Partition, PathologicalPartitioner
from fedsim.problems import logistic_regression, zeta_least_squares
from fedsim.record.metrics import read_metrics
from fedsim.report.compare import compare

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MINE = Dataset("mine", Split(X[:30], Y[:30]), Split(X[30:], Y[30:]), classes=2)


def experiment(**settings: Any) -> Experiment:
    usual: dict[str, Any] = {"data": MINE, "partition": IidPartitioner(5), "model": nn.Linear(6, 2), "rounds": 3}
    return Experiment(**{"algorithm": FedAvg(), **usual, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": FedAvg}, r"algorithm is the class FedAvg; expected e\.g\. FedAvg\(lr=0\.1\)"),
        ({"algorithm": None}, "algorithm is None; expected .* with init, round"),
        ({"partition": 10}, r"partition is 10; expected e\.g\. DirichletPartitioner"),
        ({"partition": lambda x: x}, r"alpha=0\.3\), a function \(labels, \.\.\.\), or another object with partition"),
        ({"sampling": 0.5}, r"sampling is 0\.5; expected e\.g\. FixedSize\(0\.1\)"),
        ({"schedule": 0.1}, r"schedule is 0\.1; expected e\.g\. Exponential"),
        ({"local": 5}, r"local is 5; expected LocalWork\(batch_size=32"),
        ({"evaluation": 5}, r"evaluation is 5; expected Evaluation\(every=5\)"),
        ({"data": "digits"}, r"data is 'digits', and there is no folder of that name; expected Data\(\"digits\"\)"),
        ({"model": MLP}, r"model is <class .*MLP'>; expected an nn\.Module"),
        ({"loss": "mse"}, "loss is 'mse'; expected one of auto, cross_entropy"),
        ({"algorithm": DFedAvg(), "topology": "Ring"}, r"topology is 'Ring'; expected e\.g\. Static\(Ring\(\)\)"),
        ({"seeds": True}, "seeds is True; expected a whole number, 1 or more"),
        ({"rounds": 1.5}, r"rounds is 1\.5; expected a whole number"),
    ],
)
def test_wrong_parts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalWork(batch_size=1.5), r"local\.batch_size is 1\.5; expected a whole number, 0 or more"),  # type: ignore[arg-type]
        (lambda: LocalWork(epochs="2"), r"local\.epochs is '2'; expected a whole number, 1 or more"),  # type: ignore[arg-type]
        (lambda: LocalWork(steps=0), r"local\.steps is 0; expected .* or none to count in epochs"),
        (lambda: LocalWork(weight_decay=float("nan")), r"local\.weight_decay is nan; expected a finite number"),
        (lambda: LocalWork(clip_norm=0), r"local\.clip_norm is 0; expected a positive norm"),
        (lambda: FixedSize(size=1.5), r"sampling\.size is 1\.5; expected a whole number, 1 or more"),  # type: ignore[arg-type]
        (lambda: FixedSize(2), r"sampling\.fraction is 2; .* at most 1; for a number of clients use size"),
        (lambda: Bernoulli(0), r"sampling\.p is 0; expected a number above 0"),
        (lambda: Evaluation(every=1.5), r"evaluation\.every is 1\.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: Evaluation(worst=0), r"evaluation\.worst is 0; expected a share above 0"),
        (lambda: Cosine(rounds=0), r"Cosine\.rounds is 0; expected a whole number"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    assert experiment(rounds=np.int64(5), local=LocalWork(batch_size=np.int32(4))).rounds == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X.numpy(), Y, r"train: x is a ndarray; expected a tensor: torch\.as_tensor\(x\)"),
        (X[:3], Y, "train: 3 inputs, 40 targets; expected as many of each"),
        (X[:0], Y[:0], "train: there are no samples; expected one at least"),
        (X.where(X < 1, torch.inf), Y, "train: an input of sample 2 is NaN or infinite"),
        (X, Y.float(), r"train: targets of 2 classes are torch\.float32 of shape \[\d+\]; expected int64"),
        (X, Y + 5, "train: targets from 5 to 6; expected 0 to 1"),
        (X, Y - 1, "train: targets from -1 to 0; expected 0 to 1"),
    ],
)
def test_wrong_samples(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset("mine", Split(x, y), MINE.test, classes=2)


@pytest.mark.parametrize("model", [nn.Linear(5, 2), nn.Linear(6, 1)], ids=["inputs", "outputs"])
def test_a_model_that_does_not_fit_the_data_leaves_no_run(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Linear .* input of shape \[6\] with the target 1 .*expected .* \[B, 6\]"):
        run(experiment(model=model), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_whole_numbers_are_tokens(tmp_path: Path) -> None:
    train, test = (split._replace(x=split.x.long()) for split in (MINE.train, MINE.test))
    data = replace(MINE, train=train, test=test)
    with pytest.raises(ModelError, match=r"Integer inputs are taken for tokens of text; .* x\.astype\('float32'\)"):
        run(experiment(data=data, model=nn.Linear(6, 2)), root=tmp_path, progress=False)


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    alike = [split._replace(y=torch.zeros_like(split.y)) for split in (MINE.train, MINE.test)]
    with pytest.raises(DataError, match=r"all labels are .*; expected two classes or more$"):
        run(experiment(data=Dataset("mine", *alike, classes=1), model=nn.Linear(6, 1)), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "a.npz", x=np.arange(60.0).reshape(20, 3), y=np.zeros(20, int))
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"{i},0\n" for i in range(20)))
    for name, advice in (("npz", r"more; to predict numbers, save y as real"), ("csv", r"more; if .*--data\.target")):
        data = Data(name, options={"path": str(tmp_path / f"a.{name}")})
        with pytest.raises(DataError, match=rf"all labels are 0.*expected two classes or {advice}"):
            run(experiment(data=data, model=nn.Linear(3, 1)), root=tmp_path / "runs", progress=False)


class Bare:
    """An algorithm whose state is a bare tensor."""

    def init(self, x: Tensor, clients: Clients) -> Tensor:
        return x

    def round(self, s: Tensor, clients: Clients) -> Tensor:
        return s


@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_a_state_without_a_model(backend: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Bare\.init returned a Tensor; expected a NamedTuple with the model as x"):
        run(experiment(algorithm=Bare()).with_execution(backend=backend), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Buggy(FedAvg):
    """A bug in the server's half, in a late round."""

    def round(self, s: Any, clients: Clients) -> Any:
        if clients.round == 5:
            raise KeyError("momentum")
        return super().round(s, clients)


def test_a_bug_at_the_server_loses_no_round(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=r"(?s)Buggy\.round in round 5 raised KeyError: 'momentum'\n.*in round: "):
        run(experiment(algorithm=Buggy(), rounds=8), output=tmp_path / "r", progress=False)
    assert [path.name for path in (tmp_path / "r" / "seed-0" / "checkpoints").iterdir()] == ["round-000004"]


def test_paths_may_be_texts(tmp_path: Path) -> None:
    directory = run(experiment(), output=str(tmp_path / "r"), progress=False)
    assert directory.path == tmp_path / "r"
    assert compare(str(directory.path)).runs[0].run.path == compare([str(directory.path)]).runs[0].run.path


def test_a_data_set_without_test_samples_is_refused(tmp_path: Path) -> None:
    data = Dataset("mine", Split(X, Y), Split(X[:0], Y[:0]), classes=2)
    with pytest.raises(ConfigError, match="'mine' has no test samples; set some aside"):
        run(Experiment(FedAvg(), data=data, partition=IidPartitioner(4)), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [
    {"weights": "samples"},
    {"local": LocalWork(weight_decay=0.1)},
    {"local": LocalWork(augment=lambda x, key: 0.5 * x)},
])  # fmt: skip
def test_a_problem_keeps_its_own_objective(settings: dict[str, Any]) -> None:
    unequal = logistic_regression(MINE, n=20)
    with pytest.raises(ConfigError, match=r"leave out weights, local\.weight_decay and local\.augment"):
        run(Experiment(FedAvg(), data=unequal, **settings), progress=False)


def test_a_problem_keeps_its_own_clients(tmp_path: Path) -> None:
    base = Experiment(DCGD(compressor=Identity(), lr=0.1), data=Data("zeta_least_squares"), rounds=2, dtype="float64")
    directory = run(base, root=tmp_path, progress=False)
    problem = zeta_least_squares()
    assert directory.manifest["clients"] == len(problem.dataset.client_names or np.unique(problem.dataset.train.client))
    assert base.participation == FixedSize(1.0)
    assert replace(base, sampling=FixedSize(0.5)).participation == FixedSize(0.5)
    for partition in (IidPartitioner(20), IidPartitioner(10)):
        with pytest.raises(ConfigError, match=r"does not keep the clients.*leave partition out"):
            run(replace(base, data=logistic_regression(MINE, n=20), partition=partition), root=tmp_path)


def test_cosine_descends_over_the_whole_run() -> None:
    experiment = Experiment(FedAvg(), rounds=20, schedule=Cosine(floor=0.1))
    assert experiment.decay == Cosine(20, 0.1) and experiment.decay(21) == pytest.approx(0.1)
    assert replace(experiment, schedule=Cosine(7)).decay == Cosine(7)
    with pytest.raises(ConfigError, match="give the length"):
        Cosine()(1)


def test_clients_need_not_be_measured(tmp_path: Path) -> None:
    evaluation = Evaluation(clients_every=None)
    directory = run(Experiment(FedAvg(), rounds=2, evaluation=evaluation), root=tmp_path, progress=False)
    scopes = set(read_metrics(directory.seed_path(0) / "metrics.jsonl").scope)
    assert scopes == {"server/test", "total"}


def test_classes_that_nobody_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    partition = PathologicalPartitioner(3, 2, class_assignment_mode="deterministic")
    run(Experiment(FedAvg(), rounds=1, partition=partition), root=tmp_path, progress=False)
    assert "no client has a sample of class 4, 5, 6, 7, 8, 9" in capsys.readouterr().err
    run(Experiment(FedAvg(), rounds=1), root=tmp_path, progress=False)
    assert "no client has" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("algorithm", "local", "said"),
    [
        (DCGD(), LocalWork(epochs=3, batch_size=8), ["DCGD takes .* ignores local.batch_size and local.epochs"]),
        (DCGD(gradient="minibatch"), LocalWork(epochs=3), []),
        (FedAvg(), LocalWork(epochs=3, steps=2), ["local.steps replaces local.epochs"]),
        (
            FedAvg(), LocalWork(weight_decay_mode="step", clip_mode="direction"),
            ["local.weight_decay_mode has no effect without .*decay", "local.clip_mode has no effect without .*norm"],
        ),
        (FedAvg(), LocalWork(steps=2), []),
        (FedBuff(), LocalWork(), ["rounds of FedBuff wait for .*; it is asynchronous with --clock Clock --conc"]),
    ],
)
def test_settings_that_change_nothing_are_named(algorithm: Any, local: LocalWork, said: list[str]) -> None:
    remarks = Experiment(algorithm, local=local).remarks
    assert len(remarks) == len(said)
    assert all(re.match(pattern, remark) for pattern, remark in zip(said, remarks, strict=True))


def test_data_that_was_changed_is_read_again(tmp_path: Path) -> None:
    """As in a notebook, where one process runs both; what stays as it was is shared."""
    data = Data("npz", options={"path": str(tmp_path / "own.npz")})
    hashes = []
    for shift in (0, 0, 1):
        if shift or not hashes:
            np.savez(data.options["path"], x=X.numpy() + shift, y=Y.numpy())
        dataset = resolve_data(data)
        assert isinstance(dataset, Dataset)
        hashes.append(data_hash(dataset))
    assert hashes[0] == hashes[1] != hashes[2]


@dataclass(frozen=True)
class Wrong:
    """A partitioner that counts samples from 1, or returns lists."""

    what: Any

    def partition(self, labels: Any, natural: Any, seed: int) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ([[0, 1], [2]], r"Wrong\.partition returned a list; expected a Partition"),
        (Partition(np.arange(1, 31), np.array([0, 15, 30]), {}), r"gives a client sample 30, and the data set has 30"),
    ],
)
def test_a_partitioner_of_ones_own_is_checked(what: Any, said: str) -> None:
    with pytest.raises(PartitionError, match=said):
        run(experiment(partition=Wrong(what)), progress=False)


def test_targets_of_classes_are_int64() -> None:
    with pytest.raises(DataError, match=r"targets are torch\.int32; expected int64: y\.long\(\)"):
        Dataset("mine", Split(X, Y.int()), Split(X, Y), classes=2)


def test_other_devices_are_refused() -> None:
    for device in ("mps", "tpu"):
        with pytest.raises(ConfigError, match='expected "auto", "cpu" or "cuda"'):
            Execution(device=device)


def test_settings_that_give_way_to_others_are_named() -> None:
    fraction, block_size = experiment(sampling=FixedSize(0.5, 2), execution=Execution("loop", block_size=2)).remarks
    assert block_size == "backend loop ignores block_size"
    assert fraction == "sampling.size replaces sampling.fraction"
