"""Sweeps: grids, what is left after an interruption, points that fail."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedsim import api
from fedsim.cli import main
from fedsim.cli.sweep import values
from fedsim.controller.rounds import SeedRun
from fedsim.errors import ConfigError
from fedsim.experiment.experiment import Experiment
from fedsim.record.directory import RunDirectory, open_run
from fedsim.report.compare import compare
from fedsim.sweeps.grid import grid, open_sweep

SMALL = [
    *("--algorithm", "FedAvg", "--partition", "IidPartitioner", "--partition.num_partitions", "3"),
    *("--sampling.size", "2", "--model", "Logistic", "--backend", "loop", "--rounds", "4", "--evaluation.every", "1"),
    *("--checkpoint_every", "1", "--quiet"),
]


def over(words: list[str], *settings: str) -> list[str]:
    """The words of a command line with these settings, flags and values, instead of those it has."""
    kept, given = list[str](), set(settings[::2])
    for i, word in enumerate(words):
        flag = word if word.startswith("--") else words[i - 1]
        kept += [word] * (flag not in given)
    return [*kept, *settings]


def metrics(folder: Path) -> dict[str, bytes]:
    """Metrics of every seed of every run below a folder, by their place."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("metrics.jsonl"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two step sizes and two batch sizes that went through, in this process."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    axes = ["--algorithm.lr", "0.05,0.5", "--local.batch_size", "8,32", "--seeds", "2"]
    assert main(["sweep", *SMALL, *axes, "--jobs", "1", "--output", str(folder)]) == 0
    return folder


def nowhere(outputs: Any, targets: Any) -> float:
    """A metric that no samples define."""
    return math.nan


def test_without_a_best_point_the_metric_is_undefined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A point that diverged has failed, and is not among those that are compared."""
    words = [*over(SMALL, "--rounds", "1"), "--algorithm.lr", "0.1,0.2", "--metrics", f"{__name__}.nowhere"]
    assert main(["sweep", *words, "--metric", "nowhere", "--jobs", "1", "--output", str(tmp_path / "sweep")]) == 0
    out = capsys.readouterr().out
    assert "No best point: nowhere is undefined at the end" in out and "diverged" not in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", ["0.1"]),
        ("0.1, 0.3,1e-3", ["0.1", "0.3", "1e-3"]),
        ("[5,6]", ["[5,6]"]),
        ("[5,6],[7]", ["[5,6]", "[7]"]),
        ("{name: A, b: 1},B", ["{name: A, b: 1}", "B"]),
        ("'a,b.csv',c.csv", ["a,b.csv", "c.csv"]),
    ],
)
def test_lists_of_values(text: str, expected: list[str]) -> None:
    assert values(text) == expected


@pytest.mark.parametrize("text", ["0.1,", "0.1,,0.3", "0.1,0.1"])
def test_lists_with_a_missing_or_repeated_value(text: str) -> None:
    with pytest.raises(ConfigError):
        values(text)


def test_names_of_points() -> None:
    names = [name for name, _ in grid({"algorithm.lr": ["0.1", "0.3"], "model.hidden": ["[5, 6]"]})]
    assert names == ["lr=0.1,hidden=[5,_6]", "lr=0.3,hidden=[5,_6]"]
    (name, chosen), *_ = grid({"algorithm.lr": ["1"], "schedule.lr": ["a/b"]})
    assert name == "algorithm.lr=1,schedule.lr=a_b" and chosen == {"algorithm.lr": "1", "schedule.lr": "a/b"}
    long = [name for name, _ in grid({"data.path": ["x" * 200, "x" * 201]})]
    assert len(set(long)) == 2 and all(len(name) < 120 for name in long)


def test_every_combination_is_a_run(whole: Path) -> None:
    found = {path.name: open_run(path).config for path in whole.iterdir() if path.is_dir()}
    assert set(found) == {f"lr={lr},batch_size={b}" for lr in (0.05, 0.5) for b in (8, 32)}
    for name, config in found.items():
        assert name == f"lr={config['algorithm']['lr']},batch_size={config['local']['batch_size']}"
        assert config["seeds"] == 2 and config["rounds"] == 4
    assert len(metrics(whole)) == 8


def test_local_optimisers_are_an_axis(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    axis = ["--local.optimizer", "SGD,AdamW"]
    assert main(["sweep", *SMALL, *axis, "--jobs", "1", "--output", str(folder)]) == 0
    one, other = metrics(folder).values()
    assert one != other


def test_a_point_measures_what_a_run_of_its_own_does(whole: Path, tmp_path: Path) -> None:
    alone = ["--algorithm.lr", "0.5", "--local.batch_size", "8", "--seeds", "2"]
    assert main(["run", *SMALL, *alone, "--output", str(tmp_path / "run")]) == 0
    assert metrics(tmp_path / "run") == metrics(whole / "lr=0.5,batch_size=8")


def test_the_result(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best mean final value wins, its cost is beside it, and nothing runs again."""
    before = metrics(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("timing.jsonl")}
    assert main(["resume", str(whole), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert before == (metrics(whole), {path: path.stat().st_mtime_ns for path in whole.rglob("timing.jsonl")})
    finals = {run["path"]: run["final_mean"] for run in result["runs"]}
    assert len(finals) == 4 and result["failed"] == {}
    assert result["best"]["path"] == max(finals, key=lambda path: finals[path])
    assert result["best"]["final"] == max(finals.values())
    assert result["best"]["cost"]["round"] == 4 and result["best"]["cost"]["megabytes"] > 0
    assert main(["compare", str(whole)]) == 0
    assert capsys.readouterr().out.count("FedAvg, ") >= 4


def test_the_table_and_the_choice(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(whole), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "Best by final accuracy over 2 seeds: " in text and "host seconds" in text and "baseline" in text


def test_progress_names_points_and_counts_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["sweep", *SMALL[:-1], "--algorithm.lr", "0.1,0.2", "--jobs", "1", "--root", str(tmp_path)]
    assert main(argv) == 0
    text = capsys.readouterr().err
    assert "2 points, 0 finished, 1 at a time" in text and "[2/2] lr=0.2 finished  (100 % of all rounds" in text
    assert "eta 0:00:" in text


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in round 3 of the second point's second seed; then the same command."""
    evaluate = SeedRun._evaluate

    def stop(self: Any, record: Any, round: int, *rest: Any) -> Any:
        if (self.directory.path.name, self.seed, round) == ("lr=0.05,batch_size=32", 1, 3):
            raise KeyboardInterrupt
        return evaluate(self, record, round, *rest)

    axes = ["--algorithm.lr", "0.05,0.5", "--local.batch_size", "8,32", "--seeds", "2"]
    argv = ["sweep", *over(SMALL, *axes), "--jobs", "1", "--root", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "_evaluate", stop)
        assert main(argv) == 130
    folder = tmp_path / "sweep-fedavg-digits"
    assert f"continue with: fedsim resume {folder}" in capsys.readouterr().err
    sweep = open_sweep(folder)
    assert [sweep.state(point) for point in sweep.points] == ["finished", "unfinished", "waiting", "waiting"]
    assert sweep.done() == (4 * 2 + 4 + 2, 32)
    first = (folder / "lr=0.05,batch_size=8/seed-0/timing.jsonl").read_bytes()
    assert main(argv) == 0
    assert metrics(folder) == metrics(whole)
    assert (folder / "lr=0.05,batch_size=8/seed-0/timing.jsonl").read_bytes() == first, "it ran again"
    assert [path.name for path in tmp_path.iterdir()] == ["sweep-fedavg-digits"]


def test_another_grid_gets_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lrs in ("0.1,0.2", "0.1,0.3"):
        argv = ["sweep", *over(SMALL, "--rounds", "1", "--algorithm.lr", lrs), "--jobs", "1"]
        assert main([*argv, "--root", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep-fedavg-digits", "sweep-fedavg-digits-2"]
    assert main([*argv, "--output", str(tmp_path / "sweep-fedavg-digits")]) == 2
    assert "is not this sweep; choose another --output" in capsys.readouterr().err
    file = tmp_path / "sweep-fedavg-digits" / "lr=0.1" / "seed-0" / "metrics.jsonl"
    before = file.stat().st_mtime_ns
    assert main([*over(argv, "--algorithm.lr", "0.1,0.05,0.2"), "--output", str(file.parents[2])]) == 0
    assert file.stat().st_mtime_ns == before, "a sweep with more values grows in place"
    assert [point.name for point in open_sweep(file.parents[2]).points] == ["lr=0.1", "lr=0.05", "lr=0.2"]


def test_a_failed_point_is_named_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One diverges; one cannot be set up, and leaves no run."""
    settings = over(SMALL, "--partition.num_partitions", "3,5000", "--algorithm.lr", "0.1,1e39")
    argv = ["sweep", *settings, "--jobs", "1"]
    assert main([*argv, "--output", str(tmp_path / "sweep")]) == 1
    captured = capsys.readouterr()
    assert "num_partitions=3,lr=1e39 failed: DivergenceError: FedAvg.client" in captured.err
    assert captured.err.count(" failed: PartitionError: ") == 2
    assert "3 of 4 points failed; to retry them: fedsim resume" in captured.err
    assert "Best by final accuracy over 1 seed" in captured.out and "others, such as --seed 1, before" in captured.out
    sweep = open_sweep(tmp_path / "sweep")
    assert sorted(map(sweep.state, sweep.points)) == ["failed", "failed", "failed", "finished"]
    assert sum(path.is_dir() for path in sweep.path.iterdir()) == 2


def test_a_bug_in_one_point_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = api.run

    def broken(experiment: Experiment, **settings: Any) -> RunDirectory:
        if settings["output"].name == "rounds=1":
            raise ZeroDivisionError("somebody's bug")
        return run(experiment, **settings)

    monkeypatch.setattr(api, "run", broken)
    argv = ["sweep", *over(SMALL, "--rounds", "1,2"), "--jobs", "1", "--output", str(tmp_path / "sweep")]
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "rounds=1 failed: Traceback" in error and "ZeroDivisionError: somebody's bug" in error
    monkeypatch.setattr(api, "run", run)
    assert main(argv) == 0, "it is tried again"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--algorithm.lr", "0.1"], "nothing to sweep over"),
        (["--algorithm.lr", "0.1,x"], "point lr=x: algorithm.lr is 'x'; expected a number"),
        (["--algorithm", "FedAvg,FedSpeed", "--algorithm.rho", "0.1"], "algorithm.rho"),
        (["--algorithm.lr", "0.1,0.2", "--jobs", "0"], "--jobs is 0"),
        (["--algorithm.lr", "0.1,0.2", "--jobs", "two"], "--jobs is 'two'; expected a whole number"),
        (["--algorithm.lr", "0.1,0.1"], "repeats a value"),
        (["--algorithm.lrr", "0.1,0.2"], "did you mean 'lr'?"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *over(SMALL, *argv), "--root", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--algorithm", "FedSpeed,FedAvg", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--algorithm.rho" in text and "--jobs JOBS" in text and "--algorithm.lr 0.03,0.1" in text


@pytest.mark.parametrize("key", ["--backend", "--execution.backend"])
def test_settings_of_the_execution_are_swept_over_too(key: str, tmp_path: Path) -> None:
    small = [word for word in over(SMALL, "--rounds", "1") if word not in ("--backend", "loop")]
    argv = ["sweep", *small, key, "loop,blocks", "--block_size", "2", "--jobs", "1"]
    assert main([*argv, "--output", str(tmp_path / "sweep")]) == 0
    sweep = open_sweep(tmp_path / "sweep")
    assert [point.name for point in sweep.points] == ["backend=loop", "backend=blocks"]
    labels = [summary.run.label for summary in compare([tmp_path / "sweep"]).runs]
    assert labels == ["FedAvg, backend=loop", "FedAvg, backend=blocks"], "in the order of the points"
