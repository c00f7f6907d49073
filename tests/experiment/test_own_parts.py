"""Parts of a user's own that say only what they are about: a function, or one method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from algorithms import EF21, FedAMD, FedAvg
from fedsim import EF14Uplink, Experiment, run
from fedsim.cli import main
from fedsim.errors import ConfigError, FedsimError, PartitionError
from fedsim.experiment.code import code_of
from fedsim.experiment.config import from_config, to_config
from fedsim.partition import OwnPartitioner
from fedsim.record.metrics import read_metrics
from tests.compress.cases import Above, At

MODULE = '''
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Clip:
    level: float = 0.01
    def compress(self, x, at):
        return torch.where(x.abs() > self.level, x, 0.0)

def middle(rows, weights, cut=1):
    return rows.sort(0).values[cut:-cut].mean(0)

def smooth(outputs, targets, by: float = 0.0):
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=by, reduction="none")

def fall(round, *, decay):
    return decay**round

def by_class(labels, clients=2):
    return labels % clients

def top2(outputs, targets):
    return (outputs.topk(2).indices == targets[:, None]).any(1).double().mean()

def other(x):
    raise SystemExit

def part_err(labels, n=3):
    raise KeyError("oops")

def part_req(labels, n):
    return labels % n

def m_nan(outputs, targets):
    return float("nan")
'''
FLAGS = [
    "--uplink", "EF14", "--uplink.compressor", "{}.Clip", "--uplink.compressor.level", "0.02", "--metrics", "{}.top2",
    "--aggregate", "{}.middle", "--partition", "{}.by_class", "--partition.clients", "5",
    "--sampling.fraction", "1",
]  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, under a name of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_parts_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODULE)
    return name


def test_other_parameters_of_a_function_are_settings(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a rule, a loss or a schedule, as those of a ``functools.partial`` are in Python."""
    words = ["run", "--algorithm", "FedAvg", "--rounds", "2", "--partition.num_partitions", "5", "--sampling.size", "5"]
    flags = ["--aggregate", f"{module}.middle", "--aggregate.cut", "2"]
    flags += ["--loss", f"{module}.smooth", "--loss.by", "0.1"]
    flags += ["--schedule", f"{module}.fall", "--schedule.decay", "0.9", "--model", "Logistic", "--backend", "loop"]
    assert main([*words, *flags, "--output", "run", "--quiet"]) == 0
    experiment = from_config(config := yaml.safe_load(Path("run/config.yaml").read_text()))
    assert config["aggregate"] == {"name": f"{module}.middle", "cut": 2}
    assert config["loss"] == {"name": f"{module}.smooth", "by": 0.1}
    assert config["schedule"] == {"name": f"{module}.fall", "decay": 0.9}
    assert to_config(experiment) == config and code_of(experiment).keys() >= {module}
    own = import_module(module)
    parts = {"aggregate": partial(own.middle, cut=2), "loss": partial(own.smooth, by=0.1)}
    made = run(replace(experiment, **parts, schedule=partial(own.fall, decay=0.9)), progress=False)
    rows = [(folder / "seed-0" / "metrics.jsonl").read_bytes() for folder in (Path("run"), made.path)]
    assert rows[0] == rows[1] and made.config == config
    for wrong, said in (
        (["--aggregate.rows", "2"], "unknown setting aggregate.rows: known: cut"),
        (["--aggregate.cutt", "2"], "did you mean 'cut'? Known: cut"),
        (["--schedule", f"{module}.fall"], "schedule.decay is missing"),
        (["--loss", f"{module}.smooth", "--loss.by", "x"], "loss.by is 'x'; expected a number"),
    ):
        assert main([*words, "--aggregate", f"{module}.middle", *wrong]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.process                                       # jsonargparse looks for stubs of what has no annotations
@pytest.mark.parametrize("backend", ["loop", "blocks"])
def test_all_are_named_on_the_command_line_and_resumed(backend: str, module: str) -> None:
    words = [*(word.format(module) for word in FLAGS), "--backend", backend]
    assert main(["run", "--algorithm", "FedAvg", "--rounds", "2", "--quiet", "--output", "run", *words]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["uplink"]["compressor"] == {"name": f"{module}.Clip", "level": 0.02}
    assert config["partition"] == {"name": f"{module}.by_class", "clients": 5}
    assert config["aggregate"] == f"{module}.middle" and config["metrics"] == [f"{module}.top2"]
    assert from_config(config) == from_config(to_config(from_config(config)))
    assert main(["resume", "run", "--rounds", "3", "--quiet"]) == 2      # what a file names needs leave
    assert main(["resume", "run", "--rounds", "3", "--quiet", "--allow", module]) == 0
    metrics = read_metrics(Path("run/seed-0/metrics.jsonl"))
    assert 3 in metrics.series("server/test", "top2")
    assert metrics.series("clients/train", "scored")[3] == 5
    up, down = (metrics.series("total", f"bytes_{way}")[3] for way in ("up", "down"))
    assert 0 < up < down / 10


@pytest.mark.process
def test_a_partition_by_a_function_is_shown(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "--partition", f"{module}.by_class", "--partition.clients", "3"]) == 0
    assert "3 clients" in capsys.readouterr().out
    assert main(["partition", "--partition", f"{module}.other"]) == 2
    assert "expected a class that has, or a function that begins with labels" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize(
    ("flag", "name", "known"),
    [("--partition", "by_clas", "by_class, part_err, part_req"), ("--uplink.compressor", "Klip", "Clip")],
)
def test_misspelt_names_list_what_can_serve(
    flag: str, name: str, known: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [] if flag == "--partition" else ["--uplink", "EF14"]
    assert main(["run", "--algorithm", "FedAvg", *words, flag, f"{module}.{name}"]) == 2
    assert f"has no such class or function; did you mean '{known.split(',')[0]}'? Known: {known}\n" in (
        capsys.readouterr().err
    )


@pytest.mark.process
@pytest.mark.parametrize("command", [["partition"], ["run", "--algorithm", "FedAvg"]])
def test_a_partition_that_fails(command: list[str], module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--partition", f"{module}.part_err"]) == 1
    error = capsys.readouterr().err
    assert "the partition part_err raised KeyError: 'oops'" in error and "Traceback" not in error
    assert main([*command, "--partition", f"{module}.part_req"]) == 2
    assert "partition.n is missing; expected a value\n" in capsys.readouterr().err


@pytest.mark.process
def test_a_metric_that_is_undefined_has_not_diverged(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--algorithm", "FedAvg", "--rounds", "1", "--quiet", "--metrics", f"{module}.m_nan"]) == 0
    out = capsys.readouterr().out
    assert "undefined" in out and "diverged" not in out


@pytest.mark.process
def test_a_file_cannot_have_a_function_called_that_is_no_partition(module: str) -> None:
    Path("e.yaml").write_text("algorithm: FedAvg\npartition: {name: fedsim.partition.plot}\n")
    assert main(["run", "e.yaml"]) == 2


def by_class(labels: np.ndarray, seed: int) -> np.ndarray:
    return (labels + seed) % 3


def test_a_function_is_given_the_seed_if_it_asks_for_it(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 2, 1])
    parts = OwnPartitioner(by_class).partition(labels, None, 1)
    assert [parts.shard(i).tolist() for i in range(3)] == [[2, 3], [0], [1, 4]]
    assert parts.scheme == {"name": "by_class", "seed": 1}
    experiment = Experiment(FedAvg(), partition=by_class, rounds=1)    # type: ignore[arg-type]
    assert experiment.partition == OwnPartitioner(by_class)
    run(experiment, output=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda labels: labels[:2], r"returned int64 of shape \(2,\) for 3 samples; expected the client of each"),
        (lambda labels: labels / 2, "returned float64"),
        (lambda labels: labels - 1, "returned the client -1; expected 0 or more"),
        (lambda labels: labels * 10**12, "gave no sample to client 1, but some to client 2000000000000"),
    ],
)
def test_owners_that_cannot_be(function: Any, said: str) -> None:
    with pytest.raises(PartitionError, match=said):
        OwnPartitioner(function).partition(np.array([0, 1, 2]), None, 0)


def test_a_partition_begins_with_labels() -> None:
    with pytest.raises(PartitionError, match="expected one whose first parameter is labels"):
        OwnPartitioner(lambda x: x)


@dataclass(frozen=True)
class Wrong:
    """A compressor that returns something else."""

    made: Any

    def compress(self, x: torch.Tensor, at: Any) -> Any:
        return self.made


@pytest.mark.parametrize("made", [None, torch.ones(2), torch.ones(3, dtype=torch.float64)])
def test_a_compressor_returns_a_vector_like_its_argument(made: Any) -> None:
    by = EF21(compressor=Wrong(made)).compressor           # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Wrong.compress returned .* for .*32 \[3\]; expected a tensor like"):
        by.compress(torch.ones(3), At())


class OneArgument:
    """A compressor whose method lacks ``at``."""

    def compress(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_parts_take_what_they_are_given() -> None:
    with pytest.raises(ConfigError, match=r"OneArgument\.compress has parameters \(x: .*; expected \(x, at\)"):
        EF21(compressor=OneArgument())                     # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"aggregate by_rows has parameters \(rows\); expected \(rows, weights\)"):
        Experiment(FedAvg(), aggregate=by_rows)


def by_rows(rows):                                         # type: ignore[no-untyped-def]
    return rows.mean(0)


def test_the_shorter_form_is_charged() -> None:
    by = EF14Uplink(Above(5.0)).compressor                 # type: ignore[arg-type]
    few, many = torch.zeros(1000), torch.full((1000,), 9.0)
    few[7] = 9.0
    (a,), (b,) = by.compress(few, At()).parts, by.compress(many, At()).parts
    assert len(by.encode((a,), 1000)) == int(by.nbytes((a,), 1000)) < 10
    assert len(by.encode((b,), 1000)) == int(by.nbytes((b,), 1000)) == 4001
    assert int(by.paper_bits((a,), 1000)) == 32 and int(by.paper_bits((b,), 1000)) == 32_000
    assert by.alpha(1000) is None and by.omega(1000) is None
    assert repr(by) == "Above(level=5.0, negative=0.0)"
    with pytest.raises(ValueError, match="not written in its shorter form"):
        by.decode(b"\xff" + bytes(4000), 1000, torch.float32)


def halved(round: int, every: int = 1) -> float:
    return 0.5 ** (round // every)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda round: 1 - round / 3, r"schedule <lambda> gave -0\.33\d* in round 4; expected a finite number, 0 or"),
        (lambda round: float("nan"), r"gave nan in round 1"),
        (lambda round: None, r"gave None in round 1"),
        (lambda round: "0.5", r"gave '0\.5' in round 1"),
        (lambda round: np.ones(2), r"gave \[1\.0, 1\.0\] in round 1"),
        (lambda round, rounds: 1.0, r"has parameters \(round, rounds\); expected \(round\)"),
        (lambda round: 1 / (round - 1), r"schedule <lambda> raised ZeroDivisionError"),
    ],
)
def test_a_schedule_without_factors(schedule: Any, message: str) -> None:
    with pytest.raises(FedsimError, match=message):
        Experiment(FedAvg(), schedule=schedule, rounds=5)


def test_a_schedule_of_ones_own(tmp_path: Path) -> None:
    made = {
        name: run(Experiment(FedAvg(), schedule=schedule, rounds=3), output=tmp_path / name, progress=False)
        for name, schedule in (
            ("function", halved), ("tensor", lambda round: torch.tensor(0.5**round)),
            ("other", partial(halved, every=2)),
        )
    }  # fmt: skip
    first, second, third = (each.seed_path(0).joinpath("metrics.jsonl").read_bytes() for each in made.values())
    assert first == second != third


@pytest.mark.parametrize("algorithm", [FedAMD(), EF21()])
def test_before_round_1_a_schedule_has_the_factor_of_round_1(algorithm: Any) -> None:
    experiment = Experiment(algorithm, schedule=lambda round: 1 / round, rounds=2)
    run(experiment.with_execution(backend="loop"), progress=False)
