"""The grid of robust learning: each cell once, step sizes chosen on withheld samples, the worst attack counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from algorithms import DFedAvg, FedAvg
from fedsim import (
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    IidPartitioner,
    LocalWork,
    Logistic,
    NaturalIdPartitioner,
)
from fedsim.cli import main
from fedsim.errors import ConfigError
from fedsim.report.series import load_runs
from fedsim.robust import ALIE, NNM, Mean, MoNNA, SignFlip, TrimmedMean
from fedsim.sweeps.byzantine import RobustGrid, RobustTable, records, run_grid
from tests.sweeps.test_grid import over
from topologies import Ring, Static

BASE = Experiment(
    FedAvg(),
    partition=DirichletPartitioner(10, alpha=1.0),
    model=Logistic(),
    sampling=FixedSize(1.0),
    local=LocalWork(batch_size=0, steps=1),
    rounds=3,
    evaluation=Evaluation(every=3, clients_every=None),
    execution=Execution(backend="loop"),
)
GRID = RobustGrid(
    BASE,
    {"Mean": Mean(), "NNM": NNM(TrimmedMean())},
    {"flip": SignFlip(scale=10.0), "ALIE": ALIE()},
    f=(0, 2),
    lr=(0.01, 1.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def table(folder: Path) -> RobustTable:
    return run_grid(GRID, folder, 1, progress=False)


def test_every_cell_is_an_experiment_for_f_attackers() -> None:
    cells = list(GRID.cells())
    assert len(cells) == 2 * (1 + 2)
    e = GRID.experiment(("NNM", "flip", 2, None), 1.0)
    assert (e.aggregate, e.attack, e.algorithm) == (NNM(TrimmedMean(2)), SignFlip(0.2, scale=10.0), FedAvg(lr=1.0))
    none = GRID.experiment(("Mean", "none", 0, None), None)
    assert none == BASE                                    # the plain mean, with nobody to fear
    skewed = replace(GRID, alpha=(0.3, 3.0))
    assert len(list(skewed.cells())) == 12
    assert skewed.experiment(("Mean", "flip", 2, 0.3), None).partition == DirichletPartitioner(10, alpha=0.3)


def test_step_sizes_are_chosen_by_the_worst_attack_on_withheld_samples(table: RobustTable, folder: Path) -> None:
    def withheld(rule: str, attack: str, f: int, lr: float) -> float:
        path = folder / "tuning" / f"{rule},{attack},f={f},lr={lr:g}"
        (run,) = load_runs([path], "clients/holdout", "accuracy_mean")
        assert list(run.seeds) == [1000] and run.config["evaluation"]["holdout"] == 0.2
        return float(run.seeds[1000].value[-1])

    for rule, f, alpha in GRID.groups():
        attacks = GRID.attacks if f else ["none"]
        worst = {lr: min(withheld(rule, attack, f, lr) for attack in attacks) for lr in GRID.lr}
        assert table.lr[rule, f, alpha] == max(worst, key=lambda lr, worst=worst: worst[lr])   # type: ignore[misc]


def test_step_sizes_of_nodes_are_chosen_on_withheld_samples_too(tmp_path: Path) -> None:
    ring = replace(BASE, algorithm=DFedAvg(), topology=Static(Ring()), sampling=FixedSize(1.0))
    grid = RobustGrid(ring, {"MoNNA": MoNNA()}, {"flip": SignFlip()}, f=(1,), lr=(0.01, 1.0))
    chosen = run_grid(grid, tmp_path, 1, progress=False).lr["MoNNA", 1, None]
    runs = {lr: tmp_path / "tuning" / f"MoNNA,flip,f=1,lr={lr:g}" for lr in grid.lr}
    found = {lr: load_runs([path], "nodes/holdout", "accuracy_mean")[0].seeds[1000] for lr, path in runs.items()}
    assert chosen == max(found, key=lambda lr: float(found[lr].value[-1]))


def test_the_worst_attack_counts(table: RobustTable) -> None:
    for (rule, f, alpha), (attack, worst) in table.worst.items():
        among = [value.mean for cell, value in table.accuracy.items() if (cell[0], *cell[2:]) == (rule, f, alpha)]
        assert worst.mean == min(among) == table.accuracy[rule, attack, f, alpha].mean
    assert sum(row["worst"] for row in records(table)) == 4 and len(records(table)) == 6


def test_no_cell_runs_twice(table: RobustTable, folder: Path) -> None:
    files = sorted(folder.rglob("metrics.jsonl"))
    times = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 12 + 6
    assert run_grid(GRID, folder, 1, progress=False) == table
    assert [file.stat().st_mtime_ns for file in files] == times
    assert run_grid(replace(GRID, f=(0,)), folder, 1, progress=False).accuracy.keys() < table.accuracy.keys()
    assert [file.stat().st_mtime_ns for file in files] == times, "a smaller grid is a part of it"
    with pytest.raises(ConfigError, match=f"^{folder} holds Mean,none,f=0,lr=0.01 with other settings of rounds, eval"):
        run_grid(replace(GRID, base=replace(BASE, rounds=2)), folder, 1, progress=False)
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    with pytest.raises(ConfigError, match="other exists and holds something else; choose another --output"):
        run_grid(GRID, folder / "other", 1, progress=False)


def test_a_grid_grows_where_it_is(table: RobustTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By rules, attacks, numbers of attackers and step sizes; only what is new, or has another step size, is run."""
    small = replace(GRID, rules={"Mean": Mean()}, attacks={"flip": SignFlip(scale=10.0)}, f=(2,), lr=(0.01,))
    assert run_grid(small, tmp_path, 1, progress=False).lr == {("Mean", 2, None): 0.01}
    assert not (tmp_path / "tuning").exists()
    run_grid(replace(small, f=(0, 2), lr=(0.01, 1.0)), tmp_path, 1, progress=False)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("tuning/*/seed-*/metrics.jsonl")}
    assert len(before) == 4 and run_grid(GRID, tmp_path, 1, progress=False) == table
    assert before.items() <= {file: file.stat().st_mtime_ns for file in before}.items()
    moved = [path.name for path in (tmp_path / "final" / ".stale").iterdir()]
    assert moved == ["Mean,flip,f=2"] and table.lr["Mean", 2, None] == 1.0
    assert "Mean,flip,f=2 runs again: other settings have been chosen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f": (5,)}, "NNM, f = 5: NNM with f = 5 needs 2f"),
        ({"f": (10,)}, "f is 10 of 10 clients; expected fewer attackers than clients"),
        ({"f": ()}, "the grid has no rules, attacks or numbers of attackers"),
        ({"alpha": (1.0,), "base": replace(BASE, partition=IidPartitioner(10))}, "IidPartitioner has no alpha"),
        ({"step": "speed"}, "FedAvg has no speed, which the grid would set"),
        ({"base": replace(BASE, partition=NaturalIdPartitioner())}, "does not say its number of clients"),
        ({"lr": (-1.0,)}, r"FedAvg\.lr is -1\.0"),
    ],
)
def test_bad_grids_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(GRID, **changes)   # type: ignore[arg-type]


def my_median(rows: Tensor, weights: Tensor) -> Tensor:
    return rows.median(0).values


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "byzantine --algorithm FedAvg --partition.num_partitions 10 --sampling.fraction 1 --rounds 2 --model Logistic"
        f" --backend loop --rules {__name__}.my_median,NNM+TrimmedMean --attacks IPM --f 2 --alpha 1,5 --jobs 1 --quiet"
    )
    line = text.split()
    line += ["--output", str(tmp_path / "grid"), "--heat-map", str(tmp_path / "map.png")]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "f = 2 of 10, alpha = 5" in out and "NNM+TrimmedMean" in out and (tmp_path / "map.png").stat().st_size > 5000
    assert main([*line, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 4 and all(0 <= cell["accuracy"] <= 1 for cell in cells)
    for flag, value, message in (
        ("--rules", "Krumm", "did you mean 'Krum'"), ("--f", "one", "--f has 'one'; expected whole numbers"),
        ("--rules", "Krum+NNM", "--rules has 'Krum+NNM', and Krum is no step before a rule"),
        ("--rules", "Mean+NNM", "and Mean is no step before a rule; expected steps first, such as NNM+Krum"),
        ("--rules", f"NNM+{__name__}.my_median", "expected a rule of fedsim.robust"),
        ("--heat-map", "map.jpg", "a picture is a .png, .svg or .pdf file, got map.jpg"),
    ):  # fmt: skip
        assert main(["byzantine", *over(line[1:], flag, value)]) == 2
        assert message in capsys.readouterr().err


def test_what_the_cells_have_in_common_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "byzantine --algorithm FedAvg --partition IidPartitioner --partition.num_partitions 10 --sampling.fraction 1"
        " --model Logistic --rounds 1 --rules Mean,CoordinateMedian --attacks ALIE --lr 0.1,0.3 --backend loop --jobs 1"
    )
    for name in ("a", "b"):                                # each command tells it anew
        assert main([*text.split(), "--output", str(tmp_path / name)]) == 0
        said = capsys.readouterr().err
        assert said.count("note: ALIE is no attack with its z of 10 clients and 1 attacker, ") == 1, said
