"""Settings of the execution in full and in short, in files and on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from algorithms import FedAvg
from fedsim import Execution, Experiment, Ray, Share
from fedsim.cli import main
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, load_config, to_config
from fedsim.experiment.short_forms import in_full

EXPECTED = Experiment(FedAvg(), execution=Execution("blocks", 3, ray=Ray(cpus=2.0), name="mine"))
FULL: dict[str, Any] = {
    "algorithm": "FedAvg",
    "execution": {"backend": "blocks", "block_size": 3, "ray": {"cpus": 2}, "name": "mine"},
}
FLAT: dict[str, Any] = {"algorithm": "FedAvg", **FULL["execution"]}
MIXED: dict[str, Any] = {**FLAT, "execution": {"name": "mine", "block_size": 3}}
del MIXED["name"], MIXED["block_size"]


@pytest.mark.parametrize("config", [FULL, FLAT, MIXED], ids=["full", "flat", "mixed"])
def test_files_may_have_either_form(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(config))
    assert load_config(file) == FULL
    assert from_config(config) == EXPECTED and from_config(to_config(EXPECTED)) == EXPECTED
    assert list(to_config(EXPECTED))[-1] == "execution" and "backend" not in to_config(EXPECTED)


def test_short_forms_reach_into_other_components() -> None:
    assert in_full({"data": "digits", "data_dir": "/d"}) == {"data": {"name": "digits", "data_dir": "/d"}}
    both = in_full({"ray_address": "h:1", "ray": {"actors": 2}})
    assert both == {"execution": {"ray": {"actors": 2, "address": "h:1"}}}


def test_a_pattern_alone_says_what_is_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_full({"share": "all but 3"}) == {"share": {"layers": "all but 3"}}
    assert from_config({"algorithm": "FedAvg", "share": "all but 3"}).share == Share("all but 3")
    file = tmp_path / "file.yaml"
    file.write_text("algorithm: FedAvg\nshare: {layers: 'all but 5', train: alternate}\nrounds: 1\n")
    flags = ["--share", "all but 3", "--evaluation.clients_every", "null", "--quiet", "--output", str(tmp_path / "run")]
    assert main(["run", str(file), *flags, "--share.first", "0.25", "--backend", "loop"]) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["share"] == {"layers": "all but 3", "train": "alternate", "first": 0.25}
    assert main(["run", "--algorithm", "FedAvg", "--share", "3", "--share.layers", "5"]) == 2
    assert "--share and --share.layers are one setting, given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backend": "loop", "execution": {"backend": "blocks"}}, "backend and execution.backend are one setting"),
        ({"ray": {"address": "a:1"}, "ray_address": "b:1"}, "ray_address and execution.ray.address are one setting"),
        ({"algorithm": "FedAvg", "bakend": "loop"}, "unknown setting bakend: did you mean 'backend'?"),
        ({"algorithm": "FedAvg", "execution": {"bakend": "loop"}}, "execution.bakend: did you mean 'backend'?"),
        ({"algorithm": "FedAvg", "ray": {"actrs": 1}}, "unknown setting execution.ray.actrs: did you mean 'actors'?"),
        ({"algorithm": "FedAvg", "threads": 0}, "threads is 0; expected a whole number, 1 or more, or null"),
        ({"algorithm": "FedAvg", "execution": 3}, "execution is 3; expected settings: backend, block_size"),
        ({"algorithm": "FedAvg", "execution": {"ray": "x"}}, "execution.ray is 'x'; expected settings: address"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_config(config)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["run", "--print-config", "--algorithm", "FedAvg", *words]) == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def test_flags_may_have_either_form_over_either_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    short = ["--backend", "blocks", "--block-size", "3", "--ray.cpus", "2", "--name", "mine"]
    full = [re.sub("^--", "--execution.", word) for word in short]
    assert printed(capsys, *short) == printed(capsys, *full) == to_config(EXPECTED)
    file = tmp_path / "file.yaml"
    for config in (FULL, FLAT):
        file.write_text(yaml.safe_dump(config))
        assert printed(capsys, str(file), "--name", "other")["execution"]["name"] == "other"
        assert from_config(printed(capsys, str(file), "--execution.name", "mine")) == EXPECTED
    assert printed(capsys, "--ray-address", "h:1")["execution"]["ray"]["address"] == "h:1"


def test_a_mistyped_flag_is_told_its_short_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--algorithm", "FedAvg", "--bakend", "loop"]) == 2
    assert "no option --bakend; did you mean 'backend'?" in capsys.readouterr().err
    assert main(["partition", "--backend", "loop"]) == 2, "a data set is divided, and nothing runs"
    assert main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--execution.block_size BLOCK_SIZE" in text and "--backend loop is short for --execution.backend" in text


def test_another_execution_of_the_same_experiment() -> None:
    other = EXPECTED.with_execution(backend="loop", block_size=0)
    assert other.execution == Execution("loop", ray=Ray(cpus=2.0), name="mine") and other.algorithm == FedAvg()
