"""Comparison of runs: costs to a target, warnings, output formats."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from fedsim.errors import ConfigError, RunError
from fedsim.record.directory import create_run, open_run
from fedsim.report.compare import Comparison, cells, columns_of, compare, header
from fedsim.report.records import to_csv, to_json
from fedsim.report.series import find_runs
from fedsim.report.statistics import estimate
from fedsim.report.terminal import render

Curves = Mapping[int, Sequence[float]]


def make_run(
    root: Path,
    name: str,
    curves: Curves,
    metric: str = "accuracy",
    config: Mapping[str, Any] | None = None,
    state: str = "finished",
    megabytes: float = 3.0,
    **manifest: Any,
) -> Path:
    """A run that was evaluated at rounds 0, 10, 20, ...; it pays 3 MB and 200 gradients a round."""
    known = {"seeds": list(curves), "data_hash": "d", "partition_hash": {"0": "p"}, **manifest}
    run = create_run(root, name, {"name": name, "algorithm": "FedAvg", **(config or {})}, known)
    for seed, values in curves.items():
        with run.open_seed(seed) as record:
            for row, value in enumerate(values):
                round = 10 * row
                record.metrics.add(round, "server/test", metric, value)
                record.metrics.add(round, "clients/holdout", metric, value / 2, node=0)
                record.metrics.add(round, "total", "bytes_down", round * megabytes / 3 * 1e6)
                record.metrics.add(round, "total", "bytes_up", round * megabytes * 2 / 3 * 1e6)
                record.metrics.add(round, "total", "paper_bits", round * 3e3)
                record.metrics.add(round, "total", "gradient_evaluations", round * 200)
                record.timing.add(round, "host", "seconds", round * 0.5)
        run.mark(seed, state)  # type: ignore[arg-type]
    return run.path


SLOW: Curves = {0: [0.1, 0.5, 0.70, 0.80], 1: [0.1, 0.4, 0.71, 0.78], 2: [0.1, 0.5, 0.72, 0.82]}
FAST: Curves = {0: [0.1, 0.7, 0.84, 0.83], 1: [0.1, 0.6, 0.83, 0.82], 2: [0.1, 0.7, 0.86, 0.86]}


@pytest.fixture
def two(tmp_path: Path) -> Comparison:
    return compare([make_run(tmp_path, "slow", SLOW), make_run(tmp_path, "fast", FAST)])


def test_final_best_and_paired_difference(two: Comparison) -> None:
    slow, fast = two.runs
    assert two.baseline == "slow" and slow.difference is None
    assert slow.final == estimate([0.80, 0.78, 0.82])
    assert fast.best == estimate([0.84, 0.83, 0.86])
    paired = stats.ttest_rel([0.83, 0.82, 0.86], [0.80, 0.78, 0.82]).confidence_interval(0.95)
    assert fast.difference is not None and fast.difference.half_width is not None
    assert fast.difference.mean - fast.difference.half_width == pytest.approx(paired.low)
    assert fast.difference.mean + fast.difference.half_width == pytest.approx(paired.high)
    assert two.warnings == ()


def test_cost_is_paid_at_the_first_evaluation_that_reaches_the_target(tmp_path: Path) -> None:
    path = make_run(tmp_path, "fast", FAST)
    (run,) = compare([path], target=0.84).runs
    assert run.reached == 2 and all(cost is None for cost in run.cost.values())
    (run,) = compare([path], target=0.7).runs
    assert run.reached == 3
    assert run.cost["round"] == estimate([10, 20, 10])
    assert run.run.seeds[0].cost["paper_bits"].tolist() == [0, 3e4, 6e4, 9e4]
    assert run.cost["megabytes"] == estimate([30, 60, 30])
    assert run.cost["gradient_evaluations"] == estimate([2000, 4000, 2000])


def test_loss_goes_down(tmp_path: Path) -> None:
    comparison = compare([make_run(tmp_path, "a", {0: [2.0, 0.5, 0.7], 1: [2.0, 0.9, 0.6]}, "loss")], metric="loss")
    (run,) = comparison.runs
    assert run.best == estimate([0.5, 0.6]) and comparison.target == 0.69  # 0.65 * 1.05 = 0.6825
    assert run.cost["round"] == estimate([10, 20])


def test_differences_use_the_common_seeds(tmp_path: Path) -> None:
    few = {0: SLOW[0], 1: SLOW[1]}
    comparison = compare([make_run(tmp_path, "few", few), make_run(tmp_path, "fast", FAST)])
    assert comparison.runs[1].difference == estimate([0.83 - 0.80, 0.82 - 0.78])
    assert comparison.runs[1].final.seeds == 3
    assert comparison.warnings == ("different seeds (differences use the common ones): few: [0, 1]; fast: [0, 1, 2]",)


def test_baseline(tmp_path: Path) -> None:
    paths = [make_run(tmp_path, "slow", SLOW), make_run(tmp_path, "fast", FAST)]
    assert compare(paths, baseline="best").baseline == compare(paths, baseline="fast").baseline == "fast"
    with pytest.raises(ConfigError, match="did you mean 'fast'"):
        compare(paths, baseline="fats")


def test_a_seed_that_diverged_before_anything_was_measured_counts(tmp_path: Path) -> None:
    good = make_run(tmp_path, "good", SLOW)
    bad = make_run(tmp_path, "bad", {0: FAST[0], 1: FAST[1], 2: []}, state="finished")
    open_run(bad).mark(2, "failed", "DivergenceError: FedAvg.client in round 1")
    compared = compare([good, bad])
    assert math.isnan(compared.runs[1].final.mean) and compared.runs[1].final.seeds == 3
    assert compared.runs[1].reached == 2 and compared.runs[1].cost["round"] is None
    assert any("seed 2 diverged" in warning for warning in compared.warnings)
    assert cells(compared)[1][2] == "diverged"


def test_a_metric_without_a_value_is_undefined_unless_its_run_failed(tmp_path: Path) -> None:
    good = make_run(tmp_path, "good", {0: SLOW[0]})
    none = make_run(tmp_path, "none", {0: [0.1, math.nan]})
    compared = compare([good, none])
    assert cells(compared)[1].count("undefined") == 2 and "diverged" not in cells(compared)[1]
    assert "none: seed 0 ends where the metric is undefined (its last value is not finite)" in compared.warnings
    bad = make_run(tmp_path, "bad", {0: [0.1, math.nan]}, state="failed")
    assert {"undefined", "diverged"} < set(cells(compare([bad, none]))[1]), "its difference to one that diverged"


def test_late_value_and_bits_of_papers(tmp_path: Path) -> None:
    """The mean of the last five evaluations of each seed; what was sent before round 1 is free."""
    path = make_run(tmp_path, "run", {0: [0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5]})
    late = compare(path).runs[0].late
    assert late is not None and late.mean == pytest.approx(0.3)
    few = compare(make_run(tmp_path, "few", {0: [0.0, 0.1, 0.2, 0.3, 0.4]}))
    assert few.runs[0].late is None and cells(few)[0][3] == "-", "four evaluations, and that before round 1"
    metrics = path / "seed-0" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        row["value"] += 64 * (row["metric"] == "paper_bits")
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compare(path).runs[0].run.seeds[0].cost["paper_bits"].tolist() == [3e4 * row for row in range(7)]


def test_partition_hashes_by_seed_must_agree_on_common_seeds(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", SLOW, partition_hash={"0": "p", "1": "q", "2": "r"})
    b = make_run(tmp_path, "b", {0: SLOW[0]}, partition_hash={"0": "p"})
    c = make_run(tmp_path, "c", {0: SLOW[0]}, partition_hash={"0": "x"})
    assert not any("hash" in warning for warning in compare([a, b]).warnings)
    assert any("partition hash" in warning for warning in compare([a, c]).warnings)


def test_diverged_and_missing_seeds_are_named(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", {0: [0.1, 0.5], 1: [0.1, math.nan], 2: []}, state="failed")
    comparison = compare([path])
    assert [warning.split(";")[0] for warning in comparison.warnings] == [
        "a: seed 0 has status failed (last evaluated round: 10)",
        "a: seed 1 has status failed (last evaluated round: 10)",
        "a: seed 2 has status failed (last evaluated round: none)",
        "a: seed 1 diverged (its last value is not finite)",
    ]
    assert comparison.target is None and comparison.runs[0].best == estimate([0.5, 0.1])
    assert json.loads(to_json(comparison))["runs"][0]["final_mean"] is None
    assert "diverged" in text(comparison) and "missed by 2 of 2" in text(comparison)


def test_seed_that_was_killed_while_its_files_were_created(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", SLOW)
    (path / "seed-3").mkdir()
    (path / "seed-3" / "metrics.jsonl").touch()
    assert compare([path]).runs[0].final.seeds == 3


def test_cost_that_was_not_recorded(tmp_path: Path) -> None:
    run = create_run(tmp_path, "a", {}, {"seeds": [0]})
    with run.open_seed(0) as record:
        record.metrics.add(0, "server/test", "accuracy", 0.5)
    comparison = compare([run.path])
    assert comparison.runs[0].reached == 1 and comparison.runs[0].cost["megabytes"] is None
    assert "not recorded" in text(comparison)


def test_unknown_metric_names_the_known_ones(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", SLOW)
    with pytest.raises(ConfigError, match="no metric 'f1' in scope 'server/test'; it recorded: server/test accuracy"):
        compare([path], metric="f1")


def test_a_single_run_has_no_difference(tmp_path: Path) -> None:
    alone = compare([make_run(tmp_path, "a", SLOW)])
    for column in ("difference", "p"):
        with pytest.raises(ConfigError, match=f"the column {column} is of a run against a .*/a is the only run"):
            columns_of(alone, ["final", column])


def test_finding_runs(tmp_path: Path) -> None:
    """In the order in which they were started, and in a sweep in that of its points."""
    paths = [make_run(tmp_path / "b", "one", SLOW), make_run(tmp_path / "a", "two", SLOW)]
    (paths[0] / "seed-0" / "checkpoints" / "round-000001").mkdir(parents=True)
    (paths[0] / "seed-0" / "checkpoints" / "round-000001" / "manifest.json").write_text("{}")
    assert [run.path for run in find_runs([tmp_path])] == paths
    for names in (["b", "a"], ["a", "b"], ["a"]):
        (tmp_path / "sweep.json").write_text(json.dumps({"points": [{"name": name, "config": {}} for name in names]}))
        assert [run.path.parent.name for run in find_runs([tmp_path])] == [*names, *sorted({"a", "b"} - {*names})]
    for text in ("{}", '{"points": 3}', '{"points": [{}]}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(RunError, match=r"cannot read .*sweep\.json: .*points is "):
            find_runs([tmp_path])
    (tmp_path / "sweep.json").unlink()
    assert [run.path for run in find_runs([paths[0], tmp_path])] == paths, "in the order given, each once"
    for nothing in (tmp_path / "missing", paths[0] / "seed-0"):
        with pytest.raises(RunError, match="holds no run"):
            find_runs([nothing])


def algorithm(name: str, **settings: Any) -> dict[str, Any]:
    return {"algorithm": {"name": f"algorithms.{name}", **settings}}


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"name": "a"}, {"name": "b"}], ["a", "b"]),
        ([{"name": "x", **algorithm("FedAvg")}, {"name": "x", **algorithm("SCAFFOLD")}], ["FedAvg", "SCAFFOLD"]),
        (
            [{"name": "x", **algorithm("FedAvg", lr=lr, mu=0)} for lr in (0.1, 0.2)],
            ["FedAvg, lr=0.1", "FedAvg, lr=0.2"],
        ),
        (
            [{**algorithm("FedAvg"), "partition": {"name": p}, "model": {"name": m}} for p, m in ("IA", "DB")],
            ["FedAvg, model=A, partition=I", "FedAvg, model=B, partition=D"],
        ),
        (
            [{**algorithm("FedAvg", lr=lr), "sampling": {"lr": -lr}} for lr in (1, 2)],
            ["FedAvg, algorithm.lr=1, sampling.lr=-1", "FedAvg, algorithm.lr=2, sampling.lr=-2"],
        ),
        ([{"name": "x", **algorithm("FedAvg")}] * 2, ["run", "run-2"]),
        ([algorithm("FedAvg")], ["FedAvg"]),
        (
            [{**algorithm("FedAvg", lr=lr), "backend": b, "threads": t} for lr, b, t in ((1, "l", 1), (2, "r", 9))],
            ["FedAvg, lr=1", "FedAvg, lr=2"],
        ),
        ([{**algorithm("FedAvg"), "backend": b} for b in "lr"], ["FedAvg, backend=l", "FedAvg, backend=r"]),
        (
            [{**algorithm("FedAvg", lr=lr), "backend": b} for lr, b in ((1, "l"), (1, "r"), (2, "l"))],
            ["FedAvg, lr=1, backend=l", "FedAvg, lr=1, backend=r", "FedAvg, lr=2, backend=l"],
        ),
        (
            [{**algorithm("FedAvg"), "uplink": u} for u in (None, {"name": "EF", "a": {"name": "K", "k": 1}, "b": 2})],
            ["FedAvg, uplink=None", "FedAvg, uplink=EF"],
        ),
        (
            [algorithm(name, lr=lr, **own) for name, own in (("FedAvg", {}), ("FedSAM", {"rho": 1})) for lr in (1, 2)],
            ["FedAvg, lr=1", "FedAvg, lr=2", "FedSAM, lr=1", "FedSAM, lr=2"],
        ),
    ],
)
def test_labels_tell_runs_apart(tmp_path: Path, configs: list[dict[str, Any]], expected: list[str]) -> None:
    paths = []
    for config in configs:
        run = create_run(tmp_path, "run", config, {"seeds": [0]})
        with run.open_seed(0) as record:
            record.metrics.add(0, "server/test", "accuracy", 0.5)
        paths.append(run.path)
    assert [summary.run.label for summary in compare(paths).runs] == expected


def test_a_deployment_is_labelled_as_one(tmp_path: Path) -> None:
    """Not by the checkpoints that it makes after every round, and only beside a run of the same settings."""
    paths = []
    for name, every, lr in (("auto", 50, 1), ("auto", 1, 1), ("auto", 1, 2)):
        config = {**algorithm("FedAvg", lr=lr), "backend": name, "checkpoint_every": every}
        manifest = {"seeds": [0], "backend": {"0": {"backend": "flower" if every == 1 else "blocks"}}}
        run = create_run(tmp_path, "run", config, manifest)
        with run.open_seed(0) as record:
            record.metrics.add(0, "server/test", "accuracy", 0.5)
        paths.append(run.path)
    assert [one.run.label for one in compare(paths[:2]).runs] == ["FedAvg, backend=auto", "FedAvg, backend=flower"]
    assert [one.run.label for one in compare(paths[::2]).runs] == ["FedAvg, lr=1", "FedAvg, lr=2"]


def text(comparison: Comparison, columns: int = 200, chosen: Sequence[str] | None = None) -> str:
    console = Console(width=columns, file=io.StringIO())
    console.print(render(comparison, chosen))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_table(two: Comparison) -> None:
    lines = text(two).splitlines()
    assert "accuracy on server/test, and its cost to reach 0.79" in lines[0]  # 0.8367 * 0.95 = 0.794
    fast = next(line for line in lines if line.strip().startswith("fast"))
    assert fast.rstrip().endswith("4,000 ± 0")
    assert "0.837 ± 0.052" in fast and "+0.037 ± 0.014" in fast and "20.0 ± 0.0" in fast and "60.0 ± 0.0" in fast
    slow = next(line for line in lines if line.strip().startswith("slow"))
    assert "baseline" in slow and "missed by 1 of 3" in slow


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (160, ""),
        (120, ""),
        (80, "last 5, best, MB, grad evals"),
        (40, "seeds, last 5, best, − FedSpeed, momentum=0.25, rounds, MB, grad evals"),
    ],
)
def test_columns_that_do_not_fit_are_left_out_and_named(tmp_path: Path, columns: int, left_out: str) -> None:
    for momentum, curves in ((0.25, SLOW), (0.75, FAST)):
        settings = {"name": "x", **algorithm("FedSpeed", momentum=momentum)}
        make_run(tmp_path, f"m{momentum}", curves, config=settings)
    shown = text(compare([tmp_path]), columns)
    assert max(map(len, shown.splitlines())) <= columns and "…" not in shown
    assert "0.837 ± 0.052" in shown and "FedSpeed," in shown and "momentum=0.75" in shown
    assert (f"Left out at {columns} columns: {left_out}; see them" in " ".join(shown.split())) == bool(left_out)
    assert ("Grad evals:" in shown) == (columns >= 120)
    assert str(render(compare([tmp_path]))).startswith("accuracy on server/test")


def test_table_of_one_seed_says_so_and_shows_warnings_and_odd_names(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", {0: [0.1, 0.5]}, config={"name": "[red]a[/red]"})
    b = make_run(tmp_path, "b", {0: [0.1, 0.6]}, data_hash="other")
    shown = text(compare([a, b]))
    assert "0.600 (1 seed)" in shown and "+0.100 (1 seed)" in shown
    assert "warning: different data hash" in shown and "[red]a[/red]" in shown


def test_json_and_csv_hold_the_same_numbers(two: Comparison) -> None:
    written = json.loads(to_json(two), parse_constant=pytest.fail)
    assert {name: written[name] for name in ("scope", "metric", "target", "baseline", "warnings")} == {
        "scope": "server/test", "metric": "accuracy", "target": 0.79, "baseline": "slow", "warnings": [],
    }  # fmt: skip
    fast = written["runs"][1]
    assert fast["difference_mean"] == pytest.approx(0.11 / 3) and fast["difference_seeds"] == 3
    assert fast["megabytes_to_target_mean"] == 60 and fast["reached"] == 3
    finals = [[values[-1] for values in curves.values()] for curves in (SLOW, FAST)]
    assert fast["difference_p"] == pytest.approx(stats.ttest_rel(*finals).pvalue)
    rows = list(csv.DictReader(io.StringIO(to_csv(two))))
    assert [row["run"] for row in rows] == ["slow", "fast"]
    assert float(rows[1]["final_half_width"]) == fast["final_half_width"]
    assert rows[0]["difference_mean"] == "" and rows[0]["target"] == "0.79"


def test_p_is_a_column_for_those_who_ask(tmp_path: Path) -> None:
    for name, curves in (("slow", SLOW), ("fast", FAST), ("same", FAST)):
        make_run(tmp_path, name, curves)
    compared = compare([tmp_path])
    p = stats.ttest_rel(*([values[-1] for values in curves.values()] for curves in (SLOW, FAST))).pvalue
    assert "p" not in columns_of(compared) and header(compared, ["p"]) == ["run", "p (Holm)"]
    assert cells(compared, ["p"]) == [["slow", "-"], ["fast", f"{2 * p:.3f}"], ["same", f"{2 * p:.3f}"]]
    assert "corrected for the number of runs (Holm)" in text(compared, chosen=["p"])


def test_no_paths_are_no_runs() -> None:
    with pytest.raises(RunError, match="no paths of runs; expected a directory"):
        compare([])
