"""The JSON Schema of an experiment's file agrees with what reading the file says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import algorithms
from fedsim.cli import main
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.config.schema import schema

ROOT = Path(__file__).parents[3]


@cache
def validator() -> Draft202012Validator:
    made = schema()
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS, ids=lambda cls: cls.__name__)
def test_what_a_run_writes_is_valid(algorithm: type[Any]) -> None:
    config: dict[str, Any] = {"algorithm": algorithm.__name__}
    if not getattr(algorithm, "server", True):
        config["topology"] = {"name": "Static", "graph": "Torus"}
    if algorithm.__name__ in ("FedAsync", "FedBuff"):
        config |= {"clock": "Clock", "concurrency": 20}
    validator().validate(to_config(from_config(config)))


GOOD: list[dict[str, Any]] = [
    {"algorithm": "FedAdam", "backend": "loop", "rounds": 3},
    {"algorithm": {"name": "FedDyn", "lam": 10}, "data": {"name": "npz", "data_dir": "here"}},
    {"algorithm": {"name": "EF21", "compressor": {"name": "TopK", "k": 3}}},
    {"algorithm": "my_module.Mine", "model": {"name": "my_module.net", "width": 3}, "loss": "my_module.loss"},
    {"algorithm": "DFedSAM", "topology": {"name": "Static", "graph": "Torus"}, "execution": {"threads": 1}},
    {"algorithm": "FedAvg", "clock": {"name": "Clock", "seconds": 0.1}, "waiting": {"first": 5}},
]
BAD: list[dict[str, Any]] = [
    {"algoritm": "FedAvg"},
    {"algorithm": "FedAv"},
    {"algorithm": {"name": "FedAvg", "lrr": 1}},
    {"algorithm": {"name": "FedDyn", "rho": 0.1}},
    {"algorithm": "FedAvg", "rounds": "many"},
    {"algorithm": "FedAvg", "local": {"batchsize": 3}},
    {"algorithm": "FedAvg", "weights": "equal"},
    {"algorithm": "FedAvg", "partition": None},
]


@pytest.mark.parametrize("config", GOOD)
def test_valid_files(config: dict[str, Any]) -> None:
    validator().validate(config)


@pytest.mark.parametrize("config", BAD)
def test_what_reading_refuses_is_invalid(config: dict[str, Any]) -> None:
    assert not validator().is_valid(config)
    with pytest.raises(ConfigError):
        from_config(config)


def test_files_of_the_repository_are_valid() -> None:
    for file in ROOT.glob("experiments/**/*.yaml"):
        settings = yaml.safe_load(file.read_text())
        settings.pop("methods", None)                      # fedsim tune makes experiments of them
        validator().validate(settings)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(schema()))
    assert printed["properties"]["rounds"] == {
        "type": "integer", "description": "number of communication rounds.", "default": 100,
    }  # fmt: skip
