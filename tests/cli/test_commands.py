"""The command line: precedence, output, exit codes. Most tests call `main` in this process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from algorithms import FedAvg, FedSpeed
from fedsim import api
from fedsim.cli import main
from fedsim.data import load
from fedsim.errors import DivergenceError
from fedsim.experiment.config import from_config, load_config
from fedsim.experiment.experiment import Experiment
from fedsim.partition import DirichletPartitioner, IidPartitioner, Partition

EXAMPLE = Path(__file__).parents[2] / "experiments" / "digits.yaml"
TINY = [
    *("--partition", "IidPartitioner", "--partition.num_partitions", "3", "--sampling.size", "2"),
    *("--model", "Logistic", "--rounds", "2", "--backend", "loop", "--quiet"),
]


class Refused(Exception):
    """Stands for a bug."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, dict[str, Any]]]:
    """Arguments of `api.run`, which then raises `DivergenceError`."""
    calls: list[tuple[Experiment, dict[str, Any]]] = []

    def run(experiment: Experiment, **settings: Any) -> None:
        calls.append((experiment, settings))
        raise DivergenceError("it diverged")

    monkeypatch.setattr(api, "run", run)
    return calls


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, ``a`` and ``b``."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lr in (("a", "0.1"), ("b", "0.5")):
        flags = ["--algorithm", "FedAvg", "--algorithm.lr", lr, "--name", name, "--seeds", "2"]
        assert main(["run", *flags, "--root", str(folder), *TINY]) == 0
    return folder


def test_flags_over_file_over_defaults(started: list[Any], tmp_path: Path) -> None:
    flags = ["--rounds", "7", "--algorithm.lr=0.02", "--model.hidden", "[5, 6]", "--skew", "NoiseSkew", "--quiet"]
    assert main(["run", str(EXAMPLE), *flags, "--data-dir", "/d", "--root", str(tmp_path)]) == 1
    experiment, settings = started[0]
    assert settings == {"output": None, "root": tmp_path, "progress": False}
    expected = from_config(
        {
            **load_config(EXAMPLE),
            "rounds": 7,
            "algorithm": {"name": "FedSpeed", "rho": 0.05, "lr": 0.02},
            "model": {"name": "MLP", "hidden": [5, 6]},
            "skew": "NoiseSkew",
            "data": {"data_dir": "/d"},
        }
    )
    assert experiment == expected
    assert isinstance(experiment.algorithm, FedSpeed) and experiment.seeds == 1


def test_defaults_alone(started: list[Any]) -> None:
    main(["run", "--algorithm", "FedAvg"])
    assert started[0] == (Experiment(FedAvg()), {"output": None, "root": Path("runs"), "progress": True})


def test_order_of_flags_does_not_matter(started: list[Any]) -> None:
    main(["run", "--algorithm.lr", "0.5", "--algorithm", "FedAvg", str(EXAMPLE)])
    main(["run", str(EXAMPLE), "--algorithm", "FedAvg", "--algorithm.lr", "0.5"])
    assert started[0] == started[1] and started[0][0].algorithm == FedAvg(lr=0.5)


def test_another_algorithm_than_the_files(
    started: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("algorithm: {name: FedSpeed, lr: 0.3, rho: 0.2}\n")
    main(["run", str(file), "--algorithm", "FedAvg"])
    assert started[0][0].algorithm == FedAvg(lr=0.3)
    assert "algorithm is FedAvg, not FedSpeed as in the file; dropped its rho=0.2" in capsys.readouterr().err


def test_print_config_is_a_file(started: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "resolved.yaml"
    assert main(["run", str(EXAMPLE), "--seed", "3", "--print-config"]) == 0
    file.write_text(capsys.readouterr().out)
    main(["run", str(file)])
    main(["run", str(EXAMPLE), "--seed", "3"])
    assert started[0] == started[1]
    assert set(yaml.safe_load(file.read_text())) == set(Experiment.__dataclass_fields__)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command"),
        (["rnu"], "no command 'rnu'; did you mean 'run'?"),
        (["run"], "algorithm is missing; expected a name (FedAvg, "),
        (["run", "--algorithm", "FedSpead"], "did you mean 'FedSpeed'?"),
        (["run", "--algorithm", "FedAvg", "--algorithm.lrr", "1"], "algorithm.lrr: did you mean 'lr'?"),
        (["run", "--algorithm", "FedAvg", "--algorithm.lr", "x"], "algorithm.lr is 'x'; expected a number"),
        (["run", "--algorithm", "FedAvg", "--rouns", "1"], "no option --rouns; did you mean 'rounds'?"),
        (["run", "--algorithm", "FedAvg", "--ouput", "x"], "no option --ouput; did you mean 'output'?"),
        (["run", "--algorithm", "FedAvg", "--rounds"], "--rounds needs a value"),
        (["run", "--algorithm", "FedAvg", "--rounds", "--quiet"], "--rounds needs a value"),
        (["run", "--algorithm", "FedAvg", "--quiet=1"], "--quiet takes no value"),
        (["run", "missing.yaml"], "cannot read missing.yaml"),
        (["run", "a.yaml", "b.yaml"], "got 2 files: a.yaml b.yaml"),
        (["partition", "--rounds", "2"], "fedsim partition has no option --rounds"),
        (["partition", "--output", "card.bmp"], ".png, .svg or .pdf"),
    ],
)
def test_wrong_arguments_exit_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("fedsim: ")
    assert captured.out == "" and "Traceback" not in captured.err


def test_failures_exit_1(started: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--algorithm", "FedAvg"]) == 1
    assert capsys.readouterr() == ("", "fedsim: it diverged\n")


MISSING = [
    *([command, "nowhere"] for command in ("resume", "compare", "report", "watch", "verify", "timeline", "nodes")),
    ["export", "nowhere", "--output", "model.pt"],
    ["topology", "--run", "nowhere"],
    ["deploy", "--resume", "nowhere"],
    *([command, "nowhere.yaml"] for command in ("run", "sweep", "tune", "byzantine", "deploy")),
    *([command, "nowhere.yaml"] for command in ("partition", "topology")),
    ["partition", "--data", "npz", "--data.path", "nowhere.npz"],
    ["run", "--algorithm", "FedAvg", "--data", "csv", "--data.path", "nowhere.csv"],
    ["run", "--algorithm", "FedAvg", "--init", "nowhere.pt", "--backend", "loop"],
    ["deploy", "--algorithm", "FedAvg", "--nodes", "50", "--own-data", "nowhere"],
]


@pytest.mark.parametrize("argv", MISSING, ids=" ".join)
def test_what_is_missing_exits_2_whatever_it_is(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert "nowhere" in captured.err and "Traceback" not in captured.err and captured.out == ""
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise Refused

    monkeypatch.setattr(api, "run", run)
    with pytest.raises(Refused):
        main(["run", "--algorithm", "FedAvg"])


def test_interruption_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: FedAvg, state: Any, clients: Any) -> None:
        raise KeyboardInterrupt

    argv = ["run", "--algorithm", "FedAvg", "--root", str(tmp_path), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(FedAvg, "round", interrupt)
        for again in (argv, ["resume", f"{tmp_path}/fedavg-digits", "--quiet"]):
            assert main(again) == 130
            assert f"continue with: fedsim resume {tmp_path}/fedavg-digits" in capsys.readouterr().err
    assert main(["resume", f"{tmp_path}/fedavg-digits", "--quiet"]) == 0


def test_run_resume_and_their_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "run"
    argv = ["run", "--algorithm", "FedAvg", "--output", str(output), "--json", *TINY]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == str(output) and result["seeds"] == [0]
    accuracy = result["final"]["server/test"]["accuracy"]
    assert 0 < accuracy["mean"] <= 1 and accuracy["half_width"] is None
    assert main(["resume", str(output), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert main(argv) == 2, "a run is never overwritten"
    assert "exists" in capsys.readouterr().err
    assert main([*argv, "--data", "npz", "--data.path", str(tmp_path / "none.npz")]) == 2


def test_run_prints_a_table(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(finished / "a"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert str(finished / "a") in captured.out and "server/test accuracy" in captured.out and "±" in captured.out
    assert captured.err == ""


def test_resuming_a_finished_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "a", run)
    assert main(["resume", str(run)]) == 0
    assert f"{run} had finished its 2 rounds; nothing to resume" in capsys.readouterr().err
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 2\n", "rounds: 5\n"))
    assert main(["resume", str(run), "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "seed 0 finished after 2 rounds, but config.yaml now says rounds: 5" in captured.err
    assert f"fedsim resume {run} --rounds 5" in captured.err


def test_compare(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / "out" / f"x.{kind}" for kind in ("csv", "png")}
    argv = ["compare", str(finished), "--target", "0.2", "--baseline", "b"]
    assert main([*argv, "--json", "--csv", str(files["csv"]), "--plot", str(files["png"]), "--x", "megabytes"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["target"], result["baseline"]) == (0.2, "b")
    assert [Path(row["path"]).name for row in csv.DictReader(files["csv"].read_text().splitlines())] == ["a", "b"]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert main(argv) == 0
    assert "accuracy on server/test, and its cost to reach 0.2" in capsys.readouterr().out
    look = ["--title", "T", "--width", "column", "--height", "2", "--log-y", "true", "--log-x", "auto", "--footnote="]
    assert main([*argv, "--plot", str(files["png"]), *look, "--target-line", "false"]) == 0
    assert imread(files["png"]).shape[:2] == (300, 510)
    assert main([*argv, "--metric", "f1"]) == 2
    for wrong in (["--title", "T"], ["--plot", "x.png", "--log-y", "maybe"]):
        assert main([*argv, *wrong]) == 2
    assert "--title is an option of --plot FILE" in capsys.readouterr().err
    drawn = ["--plot", str(tmp_path / "no.png"), "--x", "simulated_seconds"]
    for of_a_clock in (drawn, ["--columns", "simulated_seconds"]):
        assert main([*argv, *of_a_clock]) == 2
        assert ", as those with a clock do (--clock Clock)" in capsys.readouterr().err
    assert main([*argv, "--csv", str(finished / "a" / "manifest.json" / "x.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_report(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.html"
    assert main(["report", str(finished / "a"), "--output", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert "<!doctype html>" in file.read_text()


def test_partition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, saved = tmp_path / "out" / "card.png", tmp_path / "out" / "part.npz"
    argv = ["partition", str(EXAMPLE), "--seed", "4", "--partition.num_partitions", "9"]
    assert main([*argv, "--output", str(picture), "--save", str(saved)]) == 0
    assert "samples per client" in capsys.readouterr().out
    labels = load("digits").train.y.numpy()
    expected = DirichletPartitioner(9, alpha=0.1, min_partition_size=4).partition(labels, None, 4)
    assert Partition.load(saved).hash == expected.hash
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*argv, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["n"], numbers["hash"]) == (9, expected.hash)
    assert numbers["sizes"]["max"] == np.max(expected.sizes)


@pytest.mark.parametrize("command", ["partition", "topology"])
def test_a_problem_has_clients_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--data", "least_squares", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["n" if command == "partition" else "nodes"] == 10


def test_partition_needs_no_algorithm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["partition", "--partition", "IidPartitioner", "--partition.num_partitions", "5", "--json"]) == 0
    expected = IidPartitioner(5).partition(load("digits").train.y.numpy(), None, 0)
    assert json.loads(capsys.readouterr().out)["hash"] == expected.hash
    file = tmp_path / "x.yaml"
    file.write_text("partitoin: IidPartitioner\n")
    assert main(["partition", str(file)]) == 2
    assert "unknown setting partitoin: did you mean 'partition'?" in capsys.readouterr().err


def test_component_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("from algorithms import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert main(["run", "--algorithm", "mine.Mine", "--algorithm.lr", "0.7", "--print-config"]) == 0
    algorithm = yaml.safe_load(capsys.readouterr().out)["algorithm"]
    assert (algorithm["name"], algorithm["lr"]) == ("mine.Mine", 0.7)


@pytest.mark.process
def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    wrong = fedsim_process(["run", "--algorithm", "FedSpead"], tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("fedsim: algorithm is 'FedSpead'") and "Traceback" not in wrong.stderr
    (tmp_path / "bug.py").write_text("1 / 0\n")
    bug = fedsim_process(["run", "--algorithm", "bug.Mine"], tmp_path)
    assert bug.returncode == 1 and "ZeroDivisionError" in bug.stderr


@pytest.mark.process
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_consoles_that_are_not_utf_8(finished: Path, encoding: str) -> None:
    command = [sys.executable, "-m", "fedsim", "compare", str(finished)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "MB: sent and received by clients, 10^6 bytes" in text.replace("\n", " ")
    assert ("seeds +- 95 %" in text) == (encoding == "ascii") and "?" not in text


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 1, "fedsim: cannot write to stdout: [Errno 28] No space left on device\n"),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("2>/dev/full | true", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(redirection: str, code: int, message: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m fedsim list graphs {redirection}",
        shell=True, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_run_does_not_fail_for_its_progress(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedsim", "run", "--algorithm", "FedAvg", *TINY[:-1]]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=tmp_path, stderr=full, capture_output=False, timeout=240, check=False)
    assert done.returncode == 0


def fedsim_process(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_a_command_starts_is_an_interruption(kind: str) -> None:
    script = f"""
import os, signal, sys, time
from fedsim import cli
signal.signal(signal.{kind}, signal.SIG_DFL if "{kind}" != "SIGINT" else signal.default_int_handler)
cli.main = lambda: (os.kill(os.getpid(), signal.{kind}), time.sleep(20))
sys.exit(cli.console())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "fedsim: interrupted\n")
