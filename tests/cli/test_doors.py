"""What a user sees who makes a slip: one error with the way out, from the command line and from a script."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

import algorithms
import fedsim
from algorithms import FedAvg
from fedsim.cli import main
from fedsim.errors import ConfigError, RunError
from fedsim.experiment.config import from_config
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory
from tests.cli.test_commands import TINY
from tests.sweeps.test_grid import over

MINE = """
from dataclasses import dataclass
from algorithms import FedAvg
from fedsim import IidPartitioner

@dataclass(frozen=True)
class Mine(FedAvg):
    at: str = "client"

    def client(self, local, x):
        return local.batches() if self.at == "client" else super().client(local, x)

    def round(self, s, clients):
        if self.at == "client":
            return super().round(s, clients)
        return s._replace(x=clients.each(self.client, s.x).mean(0))

@dataclass(frozen=True)
class Halved(IidPartitioner):
    def partition(self, labels, natural, seed):
        return labels.halves()
"""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--algorithm", "{}.Mine"], r"Mine\.client in round 1: client \d raised AttributeError: local\.bat"),
        (["--algorithm", "{}.Mine", "--algorithm.at", "server"], r"Mine\.round in round 1 raised AttributeError: a Se"),
        (["--algorithm", "FedAvg", "--partition", "{}.Halved"], r"Halved\.partition raised AttributeError: 'numpy\.nd"),
    ],
)
def test_code_of_the_user_is_named_without_a_traceback(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"mine_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["run", *over(TINY, *(word.format(module) for word in argv)), "--output", str(tmp_path / "run")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert re.match(f"fedsim: {said}", error) and f"{module}.py, line " in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return from_config({"algorithm": "FedAvg", "model": "Logistic", "rounds": 2, "partition": {"num_partitions": 3}})


def test_scripts_that_forget_the_experiment(experiment: Experiment, tmp_path: Path) -> None:
    forgotten: Any = FedAvg()
    with pytest.raises(ConfigError, match=r"fedsim\.run got FedAvg\(.*expected an Experiment, .*Experiment\(FedAvg\("):
        fedsim.run(forgotten, root=tmp_path)
    with pytest.raises(ConfigError, match=r"point x is FedAvg\(.*expected an Experiment, such as \{'lr=0\.1': Exp"):
        fedsim.sweep({"x": forgotten}, root=tmp_path)
    listed: Any = [experiment]
    with pytest.raises(ConfigError, match="a sweep of a list; expected experiments by name"):
        fedsim.sweep(listed, root=tmp_path)
    with pytest.raises(ConfigError, match=r"fedsim\.resume got FedAvg"):
        fedsim.resume(tmp_path, forgotten)
    with pytest.raises(ConfigError, match=r"got 3; expected runs: their directories, or what fedsim\.run ret"):
        fedsim.compare(cast(Any, [3]))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and one that was killed before it measured anything."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", "--algorithm", "FedAvg", *TINY, "--output", str(folder / "good")]) == 0
    shutil.copytree(folder / "good", folder / "killed")
    (folder / "killed" / "seed-0" / "metrics.jsonl").write_text("")
    (folder / "killed" / "seed-0" / "timing.jsonl").write_text("")
    RunDirectory(folder / "killed").mark(0, "failed", "OSError: no space")
    return folder


def test_runs_are_compared_and_drawn_as_they_are(runs: Path, tmp_path: Path) -> None:
    good = RunDirectory(runs / "good")
    compared = [fedsim.compare(runs) for runs in (good, [good], good.path)]
    assert compared[0].runs[0].final == compared[1].runs[0].final == compared[2].runs[0].final
    for k, given in enumerate((good, [good], [good.path], str(good.path), fedsim.compare(good))):
        fedsim.curves(given, tmp_path / "new" / f"{k}.svg")
    assert len({path.read_bytes() for path in (tmp_path / "new").iterdir()}) == 1
    with pytest.raises(RunError, match=r"cannot write .*0\.svg.x\.svg: "):
        fedsim.curves(good, tmp_path / "new" / "0.svg" / "x.svg")


def test_a_run_that_measured_nothing_is_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(runs)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"left out: {runs / 'killed'} measured nothing (seed 0: failed OSError: no space)" in said
    assert main(["report", str(runs), "--output", str(tmp_path / "report.html")]) == 0
    assert "measured nothing" in (tmp_path / "report.html").read_text()
    assert main(["compare", str(runs / "killed")]) == 2
    assert "it recorded: nothing yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("run --algorithm FedDyn --algorithm.alpha 0.1", "alpha is '0.1', but FedDyn has no alpha; its alpha is"),
        ("run --algorithm FedDyn --algorithm.rho 0.1", "but FedDyn is FedSpeed with rho=0.0; leave it out, or"),
        ("run --algorithm FedAdam --algorithm.optimizer yogi", "FedAdam is FedOpt with optimizer='adam'"),
        ("run --backend loop --execution.backend blocks", "--backend and --execution.backend are one setting"),
        ("run --algorithm FedAvg --data.path x", "unknown setting data.path of digits (but one of npz, csv, "),
        ("run --algorithm fedsim.compress.Nope", "no such class or function; known: none"),
        ("list algorythms", "fedsim: list: section is 'algorythms'; did you mean 'algorithms'? Known: "),
        ("byzantine --rules Krumm", "--rules is 'Krumm'; did you mean 'Krum'? Known: "),
        ("resume x --rounds two", "fedsim: resume: --rounds is 'two'; expected a whole number; fedsim resume --help"),
        ("compare x --target high", "fedsim: compare: --target is 'high'; expected a number; "),
        ("watch x --port 99999", "x holds no run; expected a directory made by `fedsim run`"),
        ("schema foo", "COMMAND is 'foo'; known: "),
        ("report x --metrix y", "unrecognized arguments: --metrix y; did you mean '--metric'?"),
        ("compare", "fedsim: compare: the following arguments are required: DIR; fedsim compare --help explains"),
    ],
)
def test_one_line_says_what_is_wrong(argv: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("fedsim: ") and "usage:" not in error


def test_a_topology_of_a_run_with_a_server(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "--run", str(runs / "good")]) == 2
    assert "has a server and no topology; give one with --topology, or leave out --run" in capsys.readouterr().err


def test_missing_cells_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for hospital in "ab":
        rows = [f"{20 + k},{'' if k % 7 == 0 else k % 9},{k % 2}" for k in range(20)]
        (tmp_path / f"{hospital}.csv").write_text("\n".join(["age,bmi,ill", *rows]))
    flags = ["--data.path", str(tmp_path), "--partition", "NaturalIdPartitioner", "--sampling.size", "2"]
    flags += ["--algorithm", "FedAvg", "--data", "csv", "--rounds", "1", "--output", str(tmp_path / "run")]
    assert main(["run", *flags]) == 0
    assert "missing cells filled with the training mean: bmi (6)" in capsys.readouterr().err
    assert "bmi (6)" in RunDirectory(tmp_path / "run").manifest["data_notes"]


def test_names_of_the_literature_are_explained_in_python() -> None:
    with pytest.raises(ImportError, match=r"algorithms has no FedAdam; .* FedAdam is FedOpt\(optimizer='adam'\)"):
        exec("from algorithms import FedAdam")
    assert not hasattr(algorithms, "__wrapped__")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3\n", "is not YAML: line 2, column 2: while parsing a flow sequence, expected ',' or ']', but"),
        ("a: 1\na: 2\n", ": 'a' is given twice, first in line 1; expected once"),
        ("a: \x07\n", "is not YAML: unacceptable character #x0007"),
    ],
)
def test_errors_in_a_file_name_it_and_the_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    assert main(["run", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fedsim: {file}") and said in error and "<unicode string>" not in error
    assert error.count("\n") == 1
