"""More seeds for runs and grids that have some: only what is missing runs, and all is as if it had been there from the
start.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import FedAvg
from fedsim import Evaluation, Execution, Experiment, IidPartitioner, LocalWork, Logistic, resume, run
from fedsim.cli import main
from fedsim.controller import extend
from fedsim.errors import ConfigError, RunError
from fedsim.record.directory import RunDirectory
from fedsim.sweeps.grid import open_sweep

FEW = Experiment(
    FedAvg(),
    partition=IidPartitioner(4),
    model=Logistic(),
    local=LocalWork(steps=1),
    rounds=2,
    seed=3,
    evaluation=Evaluation(clients_every=None),
    execution=Execution("loop"),
)
FLAGS = [
    *("--algorithm", "FedAvg", "--partition", "IidPartitioner", "--partition.num_partitions", "4"),
    *("--model", "Logistic", "--sampling.fraction", "1", "--local.steps", "1", "--rounds", "2"),
    *("--evaluation.clients_every", "null", "--backend", "loop", "--jobs", "1"),
]


def metrics(run: RunDirectory) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in sorted(run.path.glob("seed-*/metrics.jsonl"))}


def times(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("metrics.jsonl")}


def test_a_run_with_more_seeds_is_one_that_had_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(replace(FEW, seeds=3), output=tmp_path / "whole", progress=False)
    made = run(FEW, output=tmp_path / "made", progress=False)
    before = times(made.path)
    assert main(["resume", str(made.path), "--seeds", "3", "--quiet"]) == 0
    assert "(3 seeds)" in capsys.readouterr().out or len(metrics(made)) == 3
    assert metrics(made) == metrics(whole) and made.config == {**whole.config, "execution": made.config["execution"]}
    assert times(made.path).items() > before.items(), "the first seed is left as it is"
    assert made.manifest["settings_hash"] == whole.manifest["settings_hash"]
    assert [(e["from"], e["to"]) for e in made.manifest["more_seeds"]] == [(1, 3)]
    assert main(["verify", str(made.path)]) == 0
    resume(made.path, rounds=3, seeds=4, progress=False)
    longer = run(replace(FEW, seeds=4, rounds=3), output=tmp_path / "longer", progress=False)
    assert metrics(made) == metrics(longer) and main(["verify", str(made.path)]) == 0
    with pytest.raises(ConfigError, match=r"seeds is 2, and .*made has 4; expected more, as none is taken away"):
        resume(made.path, seeds=2, progress=False)
    with pytest.raises(ConfigError, match=r"seeds is 5\.0; expected a whole number"):
        resume(made.path, seeds=5.0, progress=False)  # type: ignore[arg-type]
    settings = made.path / "config.yaml"
    settings.write_text(settings.read_text().replace("seeds: 4", "seeds: 3"))
    with pytest.raises(RunError, match="has other settings than the run began with"):
        resume(made.path, progress=False)
    assert main(["verify", str(made.path)]) == 1


@pytest.mark.parametrize("written", [1, 2])
def test_killed_while_seeds_are_added(written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(FEW, output=tmp_path / "made", progress=False)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if written == 1:                                   # the manifest alone
            patched.setattr(extend, "write_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        else:                                              # and config.yaml, but not the states of the new seeds
            patched.setattr(extend, "range", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), raising=False)
        resume(made.path, seeds=2, progress=False)
    resume(made.path, progress=False)                      # with the seeds of config.yaml
    assert len(metrics(made)) == written and main(["verify", str(made.path)]) == 0
    resume(made.path, seeds=2, progress=False)
    assert metrics(made) == metrics(run(replace(FEW, seeds=2), output=tmp_path / "whole", progress=False))
    assert main(["verify", str(made.path)]) == 0


@pytest.mark.parametrize(
    "command",
    [
        ["sweep", "--algorithm.lr", "0.1,0.3"],
        ["byzantine", "--rules", "Mean", "--attacks", "SignFlip", "--lr", "0.1,0.3"],
    ],
)
def test_grids_run_the_missing_seeds(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*command, *FLAGS, "--output", str(tmp_path / "grid")]
    assert main(argv) == 0
    before = times(tmp_path / "grid")
    assert main([*argv, "--seeds", "3"]) == 0
    after = times(tmp_path / "grid")
    assert after.items() > before.items(), "what was there has not run again"
    final = tmp_path / "grid" if command[0] == "sweep" else tmp_path / "grid" / "final"
    sweep = open_sweep(final)
    assert set(sweep.states().values()) == {"finished"}
    assert {len(RunDirectory(sweep.directory(p)).manifest["seeds"]) for p in sweep.points} == {3}
    assert main([*argv[:-1], str(tmp_path / "whole"), "--seeds", "3"]) == 0
    whole = tmp_path / "whole" / final.relative_to(tmp_path / "grid")
    for point in sweep.points:
        assert metrics(RunDirectory(sweep.directory(point))) == metrics(RunDirectory(whole / point.name))
    capsys.readouterr()
    assert main(["resume", str(final), "--seeds", "5"]) == 2
    assert f"repeat the command that made it with --output {final} --seeds 5" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--seed", "--seeds"])
def test_seeds_are_no_values_to_choose_from(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--algorithm", "FedAvg", name, "1,2"]) == 2
    assert "seeds are repetitions, of which none is best; use --seeds 3" in capsys.readouterr().err
