"""Experiments as YAML: round trips, names, layers, and errors that say where and what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import algorithms
from algorithms import EF21, EF21BC, L1, DFedAvg, FedAvg, FedSpeed
from fedsim import Adam, AdamW
from fedsim.algorithm import has_server
from fedsim.clock import Clock
from fedsim.compress import Composed, LowRank, PowerSGD, Sign, TopK
from fedsim.data.catalogue import FORMATS
from fedsim.engine.augmentation import Chain
from fedsim.engine.local_work import LocalWork
from fedsim.engine.mixup import Mixup
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, load_config, override, to_config
from fedsim.experiment.config.described import loaders
from fedsim.experiment.config.names import CATALOGUES, listed
from fedsim.experiment.evaluation import Evaluation
from fedsim.experiment.execution import Execution, Ray
from fedsim.experiment.experiment import Data, Experiment
from fedsim.experiment.sampling import Bernoulli, FixedSize
from fedsim.experiment.schedule import Constant, Steps
from fedsim.models import MLP, CharLSTM
from fedsim.partition import DirichletPartitioner, IidPartitioner, PathologicalPartitioner, ShardPartitioner
from fedsim.robust import Clipping
from tests.compress.algorithm import CompressedGradient
from topologies import LinkFailures, RandomMatching, Static

ARGUMENTS: dict[str, dict[str, Any]] = {  # of the classes that need some; others take their defaults
    "num_partitions": {"num_partitions": 7},
    "alpha": {"alpha": [0.5] * 7},
    "partition_sizes": {"partition_sizes": [3, 4]},
    "num_classes_per_partition": {"num_classes_per_partition": 2},
    "ShardPartitioner": {"num_shards_per_partition": 2},
    "GroupedNaturalIdPartitioner": {"num_partitions": None, "group_size": 3},
    "partition_id_to_size_fn": {"partition_id_to_size_fn": np.sqrt},
    "distribution_array": {"distribution_array": [[1.0, 2.0]] * 7, "num_unique_labels_per_partition": 2},
    "strictness": {"strictness": 0.5},
    "LogNormal": {"median": 2.0},
    "Uniform": {"low": 1.0, "high": 2.0},
    "HalfNormal": {"least": 1.0, "spread": 0.5},
    "MLP": {"hidden": (5, 6)},
    "Steps": {"milestones": (3, 5)},
    "BarabasiAlbert": {"m": 2},
    "ErdosRenyi": {"p": 0.5},
    "FromFile": {"path": Path("/graph.graphml")},
    "LinkFailures": {"base": RandomMatching(), "probability": 0.1},
    "RandomNeighbours": {"degree": 4},
    "RandomRegular": {"degree": 4},
    "TracedClock": {"path": "/phones.csv"},
    "WattsStrogatz": {"k": 4, "p": 0.1},
}


def through_yaml(experiment: Experiment) -> Experiment:
    return from_config(yaml.safe_load(yaml.safe_dump(to_config(experiment))))


def config(**settings: Any) -> dict[str, Any]:
    return {"algorithm": "FedAvg", **settings}


def holding(kind: str, component: Any) -> Experiment:
    """An experiment with this component; a graph and a base are parts of a topology, compressors of an algorithm,
    rules of a step before them.
    """
    serverless = Experiment(DFedAvg(), topology=Static())
    if kind == "graph":
        return replace(serverless, topology=Static(component))
    if kind == "base":
        return replace(serverless, topology=LinkFailures(component, 0.1))
    if kind == "uplink" and not hasattr(component, "send"):
        return replace(serverless, uplink=component)
    if kind in ("rule", "aggregate"):
        rule = Clipping(component) if kind == "rule" else component
        return replace(serverless if component.local else Experiment(FedAvg()), aggregate=rule)
    if kind in ("compressor", "values"):
        compressor = component if kind == "compressor" else Composed(values=component)
        return Experiment(CompressedGradient(compressor=compressor))
    if kind in CLOCKS:
        return Experiment(FedAvg(), clock=Clock(**{kind: component}))
    if kind in ("optimizer", "augment", "step_schedule"):
        return Experiment(FedAvg(), local=LocalWork(**{kind: component}))
    if kind in ("first", "then"):
        return Experiment(FedAvg(), local=LocalWork(augment=Chain(**{kind: component})))
    plain = has_server(component) if kind == "algorithm" else kind != "topology"
    return replace(Experiment(FedAvg()) if plain else serverless, **{kind: component})


CLOCKS = ("seconds", "bandwidth_down", "bandwidth_up", "latency", "availability")
"""Kinds of components of a clock."""
COMPONENTS = [
    (kind, name, cls)
    for kind in CATALOGUES if kind != "server_compressor"
    for name, cls in listed(kind).items()
    if (kind != "values" or cls not in (LowRank, PowerSGD))     # no layers
    and (kind, cls) != ("first", Mixup)                         # which comes last
]


@pytest.mark.parametrize(("kind", "name", "cls"), COMPONENTS, ids=lambda value: value if isinstance(value, str) else "")
def test_round_trip_of_every_component(kind: str, name: str, cls: type) -> None:
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    keys = [*(key for key in ARGUMENTS if kind == "partition" and key in fields), cls.__name__]
    settings = {field: value for key in keys for field, value in ARGUMENTS.get(key, {}).items()}
    component = cls(**settings)
    experiment = holding(kind, component)
    config = to_config(experiment)
    owner = {
        "graph": config["topology"],
        "base": config["topology"],
        "rule": config["aggregate"],
        "compressor": config["algorithm"],
        "values": config["algorithm"].get("compressor"),
        **dict.fromkeys(("optimizer", "augment", "step_schedule"), config["local"]),
        **dict.fromkeys(("first", "then"), config["local"]["augment"]),
    }
    written = (config["clock"] if kind in CLOCKS else owner.get(kind, config))[kind]
    assert written["name"] == name
    assert sorted(written) == sorted(["name", *fields]), "every field is written"
    assert through_yaml(experiment) == experiment


def test_round_trip_of_a_second_compressor_and_a_regulariser() -> None:
    both = EF21BC(compressor=TopK(k=3), server_compressor=Sign())
    for algorithm in (both, EF21(compressor=TopK(k=3), prox=L1(0.25))):
        assert through_yaml(Experiment(algorithm)) == Experiment(algorithm)


@pytest.mark.parametrize("name", loaders())
def test_round_trip_of_every_data_set(name: str) -> None:
    options = {"path": "/x"} if name in FORMATS else {}
    experiment = Experiment(FedAvg(), data=Data(name, data_dir="/d", options=options))
    assert through_yaml(experiment) == experiment


def test_round_trip_of_every_plain_field() -> None:
    experiment = Experiment(
        FedSpeed(lr=0.25, dual_avg="active", normalize=False),
        data=Data("shakespeare", "/data", True, {"sequence_length": 20}),
        partition=DirichletPartitioner(3, alpha=(0.1, 0.2, 0.3), self_balancing=True),
        model=CharLSTM(hidden=8),
        loss="cross_entropy",
        local=LocalWork(4, 2, 9, 1e-4, 5.0, AdamW(0.8, weight_decay=0.2, state="keep"), "step", "direction"),
        sampling=FixedSize(size=2),
        weights="samples",
        rounds=3,
        seeds=2,
        seed=5,
        evaluation=Evaluation(1, 2, 0.3, 0.4),
        dtype="float64",
        execution=Execution("blocks", 4, "cpu", 2, "disk", Ray(actors=3), 2, "7", (), 3),
    )
    assert through_yaml(experiment) == experiment
    assert from_config(config(name="7")).execution.name == "7"


def test_numpy_values_become_plain() -> None:
    experiment = Experiment(FedAvg(lr=np.float64(0.5)), model=MLP(tuple(np.arange(3, 5))), data=Data(data_dir="/d"))
    assert through_yaml(experiment) == experiment
    data = Data("npz", options={"path": Path("/d/x.npz")})
    assert to_config(Experiment(FedAvg(), data=data))["data"]["path"] == "/d/x.npz"


def test_a_name_is_short_for_a_mapping() -> None:
    assert from_config({"algorithm": "FedSpeed"}) == Experiment(FedSpeed())
    short = config(data="mnist", schedule="Steps", skew="NoiseSkew")
    long = config(data={"name": "mnist"}, schedule={"name": "Steps"}, skew={"name": "NoiseSkew"})
    assert from_config(short) == from_config(long)


def test_what_is_left_out_keeps_the_default() -> None:
    refined = from_config(config(partition={"alpha": 0.1}, sampling={"fraction": 0.5}, local={"batch_size": 8}))
    assert refined.partition == DirichletPartitioner(50, alpha=0.1)
    assert refined.sampling == FixedSize(0.5)
    assert refined.local == LocalWork(8)
    assert from_config(config(local={"optimizer": {"name": "Adam", "beta1": 0.5}})).local.optimizer == Adam(0.5)
    other = from_config(config(partition={"name": "IidPartitioner", "num_partitions": 4}, sampling="Bernoulli"))
    assert (other.partition, other.sampling) == (IidPartitioner(4), Bernoulli())
    assert from_config(config(skew=None, local={"steps": None})) == Experiment(FedAvg())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"algorithm is missing; expected a name \(FedAvg, FedAMD"),
        ({"algorithm": "FedSpead"}, r"algorithm is 'FedSpead'; did you mean 'FedSpeed'\?"),
        ({"algorithm": {"lr": 0.1}}, r"algorithm has lr and no name; expected --algorithm NAME, such as"),
        (
            {"algorithm": "FedAvg", "aggregate": {"name": "FlagAggregator", "normalise": "maybe"}},
            r"aggregate\.normalise is 'maybe'; expected true or false",
        ),
        ({"algorithm": 3}, "algorithm is 3; expected a name"),
        ({"algorithm": {"name": "FedSpeed", "lrr": 0.1}}, r"algorithm\.lrr: did you mean 'lr'\?"),
        ({"algorithm": {"name": "FedSpeed", "lr": "x"}}, r"algorithm\.lr is 'x'; expected a number: local step size"),
        ({"algorithm": {"name": "FedAMD", "p": "best"}}, r"algorithm\.p is 'best'; expected a number or 'optimal'"),
        ({"algorithm": {"name": "FedAvg", "lr": -1}}, r"FedAvg\.lr is -1\.0; expected a finite number above 0"),
        (config(rouns=3), r"unknown setting rouns: did you mean 'rounds'\?"),
        (config(rounds=2.5), r"rounds is 2\.5; expected a whole number: number of communication rounds"),
        (config(rounds=True), "rounds is True; expected a whole number"),
        (config(rounds=None), "rounds is null; expected a whole number"),
        (config(rounds=0), "rounds is 0; expected a whole number, 1 or more"),
        (config(name=3), r"execution\.name is 3; expected text"),
        (config(dtype="float16"), "dtype is 'float16'; expected 'float32' or 'float64'"),
        (config(model=None), r"model is null; expected a name \(Logistic, MLP"),
        (config(model={"name": "MLP", "hidden": 3}), r"model\.hidden is 3; expected a list in brackets, \[a,b\], each"),
        (config(attack={"name": "SignFlip", "ids": "0,3"}), r"ids is '0,3'; expected a list in brackets, \[a,b\]"),
        (
            config(clock={"name": "Clock", "seconds": "0.1,0.2"}),
            r"clock\.seconds is '0\.1,0\.2'; expected a number, a list of numbers in brackets, \[a,b\], or LogNormal",
        ),
        (config(model={"name": "MLP", "hidden": []}), r"hidden=\(\); expected one or more widths"),
        (config(local=3), "local is 3; expected settings: batch_size, epochs"),
        (config(local={"name": "LocalWork"}), r"unknown setting local\.name"),
        (config(local={"clip_norm": "none"}), r"local\.clip_norm is 'none'; expected a number or null"),
        (config(loss="crossentropy"), r"loss is 'crossentropy'; did you mean 'cross_entropy'\?"),
        (config(loss={"name": "auto", "x": 1}), "loss is 'auto'"),
        (config(partition="IidPartitioner"), r"partition\.num_partitions is missing; expected a whole number"),
        (config(partition={"alpha": -1}), "partition: alpha must be positive"),
        (config(data="digitz"), r"data is 'digitz'; did you mean 'digits'\?"),
        (config(data="npz"), r"data\.path is missing"),
        (config(data={"name": "shakespeare", "sequence_lenght": 8}), r"data\.sequence_lenght: did you mean 'sequence"),
        (config(data={"name": "shakespeare", "sequence_length": "x"}), r"data\.sequence_length is 'x'; expected a who"),
        (config(data={"name": "digits", "options": {}}), r"unknown setting data\.options"),
        ({1: 2}, "unknown setting 1"),
    ],
)
def test_errors_say_where_and_what(settings: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config(settings)


def test_problem_made_of_a_data_set() -> None:
    options = {"data": "mushrooms", "n": 5, "regularizer": "nonconvex"}
    experiment = from_config(config(data={"name": "logistic_regression", **options}))
    assert experiment.data == Data("logistic_regression", options=options)
    assert through_yaml(experiment) == experiment


def test_override() -> None:
    notes: list[str] = []
    below = {
        "algorithm": {"name": "FedSpeed", "lr": 0.5, "rho": 0.1},
        "model": {"name": "MLP", "hidden": [3]},
        "partition": "IidPartitioner",
        "data": {"python": "Dataset 'x'"},
        "rounds": 3,
    }
    above = {"algorithm": {"name": "FedAvg"}, "model": "CharLSTM", "data": "digits", "rounds": "5", "seed": "1"}
    assert override(below, {**above, "partition": {"num_partitions": "9"}}, notes) == {
        "algorithm": {"name": "FedAvg", "lr": 0.5},
        "model": {"name": "CharLSTM"},  # a width is no list of widths
        "partition": {"name": "IidPartitioner", "num_partitions": "9"},
        "data": {"name": "digits"},
        "rounds": "5",
        "seed": "1",
    }
    assert [note.split(";")[1] for note in notes] == [" dropped its rho=0.1", " dropped its hidden=[3]"]
    assert below["rounds"] == 3, "the arguments stay as they are"
    nameless, told = {"sampling": {"size": 1}}, list[str]()
    assert override(nameless, {"sampling": "Bernoulli"}, told) == {"sampling": {"name": "Bernoulli"}}
    assert told == ["sampling is Bernoulli; dropped the file's size=1"]
    assert override(nameless, {"sampling": "FixedSize"}, told)["sampling"] == {"name": "FixedSize", "size": 1}
    assert override({"model": "MLP"}, {"model": {"hidden": "[2]"}}, notes)["model"] == {"name": "MLP", "hidden": "[2]"}


def test_load_config(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("algorithm: {name: FedAvg, lr: 1e-3}\n")
    assert from_config(load_config(path)) == Experiment(FedAvg(lr=0.001)), "YAML 1.1 takes 1e-3 for text"
    for text, message in (("- a", r"holds \['a'\]; expected settings"), ("a: [", "is not YAML"), ("", "is empty")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    twice = {"local": "local: {epochs: 2}\nlocal: {}\n", "epochs": "local:\n  epochs: 1\n  epochs: 2\n"}
    for key, text in twice.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"'{key}' is given twice"):
            load_config(path)
    path.write_text("base: &base {lr: 1}\nalgorithm: {<<: *base, name: FedAvg, lr: 2}\n")
    assert load_config(path)["algorithm"] == {"name": "FedAvg", "lr": 2}, "what is merged may be replaced"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load_config(tmp_path / "missing.yaml")


def test_example_file() -> None:
    experiment = from_config(load_config(Path(__file__).parents[3] / "experiments" / "digits.yaml"))
    assert experiment.algorithm == FedSpeed(rho=0.05)
    assert experiment.partition == DirichletPartitioner(50, alpha=0.1, min_partition_size=4)
    assert experiment.sampling == FixedSize(0.2) and experiment.schedule == Constant()
    assert experiment.model == MLP((64,)) and experiment.local == LocalWork(16, 2)


def test_catalogues_are_complete() -> None:
    assert set(listed("algorithm").values()) == set(algorithms.ALGORITHMS)
    for cls in (PathologicalPartitioner, ShardPartitioner, Steps, CharLSTM, Bernoulli):
        assert any(cls is known for kind in CATALOGUES for known in listed(kind).values())
