"""Help of the command line, and the list of names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedsim
from algorithms import ALGORITHMS
from fedsim.cli import COMMANDS, main
from fedsim.experiment.config.names import ALIASES
from fedsim.experiment.experiment import Experiment

EXAMPLE = Path(__file__).parents[2] / "experiments" / "digits.yaml"


@pytest.mark.parametrize("command", ["run", "deploy", "sweep", "tune", "partition", "topology"])
def test_help_fits_the_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    words = capsys.readouterr().out.splitlines()
    assert not [line for line in words if len(line) > 80]


def test_lines_of_a_file_stay_lines_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("    methods:")
    assert lines[at - 1].endswith("FILE.yaml holds the settings of all, and")
    assert lines[at + 1] == "      FedAvg: {algorithm.lr: [0.1, 0.3, 1.0]}"
    assert lines[at + 3].startswith("With --search")


def test_help_explains_the_chosen_components(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["run", str(EXAMPLE), "--algorithm", "FedAMD", "--rounds", "17", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--algorithm.server_lr SERVER_LR server step size eta_s. (type: float, default: 1.0)" in " ".join(
        text.split()
    )
    assert "communication rounds. (type: int, default: 17)" in text
    assert "number of clients. (type: int, default: 50)" in text, "given in the file, so not required"
    assert "--weights {uniform,samples}" in text and "cross_entropy, squared, logistic" in text
    assert "RotationSkew, NoiseSkew" in text and "--algorithm.rho" not in text and "``" not in text
    for field in Experiment.__dataclass_fields__:
        assert f"--{field}" in text, "every field is explained"
    assert main(["run", "--uplink", "EF14", "--uplink.compressor", "TopK", "--data", "csv", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "QSGD" in text and "column with the labels; by default the last one" in text
    assert main(["partition", "--data", "logistic_regression", "-h"]) == 0
    text = capsys.readouterr().out
    assert "--data.lam" in text and "--data.data DATA" in text and "--algorithm" not in text


def test_top_level_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{fedsim.__version__}\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for words in ("FedAvg", "Federated averaging.", "DirichletPartitioner", "shakespeare", "least_squares", "Cosine"):
        assert words in text
    assert main(["list", "algorithms", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["algorithms"]
    assert set(found["algorithms"]) == {cls.__name__ for cls in ALGORITHMS} | ALIASES["ALGORITHMS"].keys()
    assert all(found["algorithms"].values()), "every one has a description"
    assert found["algorithms"]["FedDyn"] == "alias of FedSpeed(rho=0.0, lam=100.0)"
    assert main(["list", "compressors"]) == 0
    assert "alias of QSGD(s=1, norm='linf')" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run", "--lr", "0.1"], "no option --lr; did you mean --algorithm.lr?"),
        (["run", "--rho", "0.1"], "no option --rho; did you mean --algorithm.rho?"),
        (["run", "--clients", "10"], "no option --clients; did you mean --partition.num_partitions?"),
        (["partition", "--num-clients", "10"], "did you mean --partition.num_partitions?"),
        (["sweep", "--batch-size", "8,16"], "did you mean --local.batch_size?"),
        (["run", "--alpha", "0.1"], "did you mean --partition.alpha or --algorithm.alpha?"),
        (["run", "--dataset", "mnist"], "did you mean --data?"),
        (["partition", "--lr", "0.1"], "no option --lr; known: help"),
        (["run", "--algorithm", "EF21", "--compressor", "TopK"], "did you mean --algorithm.compressor?"),
        (
            ["run", "--algorithm", "FedAvg", "--compressor", "TopK"],
            "did you mean --uplink EF14 --uplink.compressor (or Choco, EControl, EF21, ...) or --downlink EF21P",
        ),
        (["run", "--algorithm", "FedAvg", "--mu", "1"], "mean --algorithm FedProx --algorithm.mu (or QGDSGDm)?"),
        (["run", "--algorithm", "FedAvg", "--optimizer", "Adam"], "did you mean --local.optimizer?"),
        (["run", "--algorithm", "FedAvg", "--graph", "Ring"], "did you mean --topology Static --topology.graph?"),
        (["run", "--f", "2", "--aggregate", "TrimmedMean", "--rounds", "x"], "did you mean --aggregate.f?"),
        (["run", "--num-partition", "3"], "did you mean --partition.num_partitions?"),
        (["run", "--partitions", "3"], "did you mean 'partition'?"),
        (["run", "--config", "x.yaml"], "no option --config; the file stands by itself: fedsim run FILE.yaml"),
        (["run", "fedavg"], "there is no file fedavg; did you mean --algorithm FedAvg?"),
        (["topology", "Ring"], "there is no file Ring; did you mean --topology Static --topology.graph Ring?"),
        (["partition", "FedAvg"], "cannot read FedAvg: No such file"),
    ],
)
def test_an_unknown_flag_names_the_setting_of_a_component(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_list_is_wrapped_in_a_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["list", "partitions"]) == 0
    words = capsys.readouterr().out.split()
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list", "partitions"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert text.split() == words and max(map(len, lines)) <= columns
    indent = 6 if columns == 40 else len("  GroupedNaturalIdPartitioner  ")
    assert all(line.startswith(" " * indent) for line in lines if line.startswith("   "))


@pytest.mark.process
def test_help_and_mistakes_do_not_load_torch(tmp_path: Path) -> None:
    """Once a process has remembered the descriptions; this one may have found packages in folders of other tests."""
    lines = [
        ["--help"], ["list"], ["schema"], ["list", "algorithms"], *([command, "--help"] for command in COMMANDS),
        ["rnu"], ["topology", "--graph", "Ring"], ["partition", "--data", "digit"], ["run", "--topology", "Ring"],
        ["run", "--algorithm", "FedAvg", "--compressor", "TopK"], ["topology", "--topology", "Ring"],
        ["run", "--roundz", "3"], ["run", "--algorithm", "FedAvgg"], ["run", "--algorithm", "FedAvg", "--rounds", "x"],
    ]  # fmt: skip
    code = f"""
import sys
from fedsim.cli import main
codes = []
for line in {lines}:
    try:
        codes.append(main(line))
    except SystemExit as end:                              # of argparse
        codes.append(end.code)
print(codes, sorted({{'torch', 'scipy', 'sklearn', 'networkx', 'pandas'}} & set(sys.modules)))
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{[0] * (4 + len(COMMANDS)) + [2] * 9} []"
