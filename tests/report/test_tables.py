"""Comparisons as LaTeX and Markdown: every character in its place, the best in bold, the runs by other names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedsim import compare, render, to_latex, to_markdown
from fedsim.cli import main
from fedsim.errors import ConfigError
from fedsim.report.compare import Comparison
from tests.report.test_compare import FAST, SLOW, make_run


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path, "slow", SLOW), make_run(tmp_path, "fast", FAST)]


@pytest.fixture
def two(paths: list[Path]) -> Comparison:
    return compare(paths)


def latex_rows(text: str) -> list[list[str]]:
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    return [re.split(r" (?<!\\)& ", line.removesuffix(r" \\")) for line in body.splitlines()]


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines]


def test_latex(two: Comparison) -> None:
    text = to_latex(two, ["seeds", "final", "difference", "round", "megabytes"])
    comment, *lines = text.splitlines()
    assert comment.startswith("% Accuracy on server/test, and its cost to reach 0.79. Mean over seeds ± 95 % Student")
    assert "Bold: best mean of its column." in comment and "Grad evals" not in comment
    assert lines == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"run & seeds & final & $-$ slow & rounds & MB \\",
        r"\midrule",
        r"slow & $3$ & $0.800 \pm 0.050$ & baseline & missed by 1 of 3 & -- \\",
        r"fast & $3$ & $\mathbf{0.837 \pm 0.052}$ & $\mathbf{+0.037 \pm 0.014}$ & $\mathbf{20.0 \pm 0.0}$"
        r" & $\mathbf{60.0 \pm 0.0}$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_markdown(two: Comparison) -> None:
    assert to_markdown(two, ["final", "difference", "megabytes"]).splitlines()[:4] == [
        "| run | final | − slow | MB |",
        "| --- | ---: | ---: | ---: |",
        "| slow | 0.800 ± 0.050 | baseline | missed by 1 of 3 |",
        "| fast | **0.837 ± 0.052** | **+0.037 ± 0.014** | **60.0 ± 0.0** |",
    ]
    assert len(markdown_rows(to_markdown(two))[0]) == 9 == len(latex_rows(to_latex(two))[0])


def test_bold_follows_the_direction_of_the_metric_and_the_cost(tmp_path: Path) -> None:
    low, high = {0: [2.0, 0.5, 0.4], 1: [2.0, 0.4, 0.4]}, {0: [2.0, 0.7, 0.5], 1: [2.0, 0.8, 0.6]}
    runs = [make_run(tmp_path, name, curves, "loss") for name, curves in (("low", low), ("high", high), ("same", low))]
    compared = compare(runs, metric="loss", target=0.9, baseline="high")
    rows = markdown_rows(to_markdown(compared, ["seeds", "final", "difference"]))
    bold = [["**" in cell for cell in row] for row in rows]
    assert bold == [[False, False, True, True], [False] * 4, [False, False, True, True]], "equal means share it"
    against_best = compare(runs[:2], metric="loss", target=0.9, baseline="low")
    assert [row[1] for row in markdown_rows(to_markdown(against_best, ["difference"]))] == [
        "**baseline**", "+0.150 ± 0.635"
    ]  # fmt: skip
    alone = to_latex(compare(runs[0], metric="loss"))
    assert "mathbf" not in alone and "Bold" not in alone and "textbf" not in alone


def test_what_has_no_number_is_never_the_best(tmp_path: Path) -> None:
    good = make_run(tmp_path, "good", {0: [0.1, 0.4]})
    bad = make_run(tmp_path, "bad", {0: [0.1, float("nan")]}, state="failed")
    text = to_latex(compare([bad, good], baseline="good"), ["final", "late", "difference"])
    assert latex_rows(text) == [
        ["bad", "diverged", "-", "diverged"],
        ["good", r"$\mathbf{0.400}$ (1 seed)", "-", r"\textbf{baseline}"],
    ]
    assert "% Warning: bad: seed 0 diverged" in text


def test_tiny_and_large_numbers_are_mathematics(tmp_path: Path) -> None:
    curves = {"a": {0: [1, 2e-5], 1: [1, 2e-5]}, "b": {0: [1, 1e7]}}
    runs = [make_run(tmp_path, name, values, "loss") for name, values in curves.items()]
    small, large = latex_rows(to_latex(compare(runs, metric="loss"), ["final"]))
    assert small[1] == r"$\mathbf{2.00 \cdot 10^{-5} \pm 0.00}$"
    assert large[1] == r"$10{,}000{,}000$ (1 seed)"


ODD = "[50% & $x$_{#1} \\ ^~ <|>* η−1]\nend"


def test_characters_with_a_meaning_are_escaped(paths: list[Path]) -> None:
    compared = compare(paths, labels={str(paths[0]): ODD})
    (latex, *_), _ = latex_rows(to_latex(compared, ["final"]))
    assert latex == (
        r"{[}50\% \& \$x\$\_\{\#1\} \textbackslash{} \textasciicircum{}\textasciitilde{}"
        r" \textless{}\textbar{}\textgreater{}{*} $\eta$$-$1] end"
    )
    (markdown, *_), _ = markdown_rows(to_markdown(compared, ["final"]))
    assert markdown == r"\[50% \& \$x\$\_{\#1} \\ ^\~ \<\|\>\* η−1\] end"
    assert re.sub(r"\\([^a-z0-9\s])", r"\1", markdown) == " ".join(ODD.split())
    for line in to_latex(compared, ["final", "difference"]).splitlines():
        assert line.startswith("%") or not re.search(r"(?<!\\)[%#_]", line)


def test_labels(paths: list[Path], tmp_path: Path) -> None:
    compared = compare(paths, labels={str(paths[0]): "FedAvg", "fast": "SCAFFOLD"}, baseline="SCAFFOLD")
    assert [summary.run.label for summary in compared.runs] == ["FedAvg", "SCAFFOLD"]
    assert "FedAvg" in str(render(compared)) and "− SCAFFOLD" in str(render(compared))
    assert [s.run.label for s in compare(paths, labels={"slow": "fast", "fast": "slow"}).runs] == ["fast", "slow"]
    with pytest.raises(ConfigError, match=r"the label 'x' is of 'fats', no run here; did you mean 'fast'"):
        compare(paths, labels={"fats": "x"})
    with pytest.raises(ConfigError, match="several runs: fast; choose others"):
        compare(paths, labels={"slow": "fast"})


def test_the_command(paths: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", *map(str, paths), "--label", f"{paths[0]}=η=0.1", "--label", "fast=Fast one"]
    assert main([*argv, "--latex", "--columns", "final, round"]) == 0
    compared = compare(paths, labels={"slow": "η=0.1", "fast": "Fast one"})
    assert capsys.readouterr().out == to_latex(compared, ["final", "round"])
    assert main([*argv, "--markdown"]) == 0
    assert capsys.readouterr().out == to_markdown(compared)
    assert main([*argv, "--columns", "best"]) == 0
    shown = capsys.readouterr().out
    assert "best" in shown and "Fast one" in shown and "final" not in shown and "Left out" not in shown
    for wrong, error in (
        (["--columns", "finale"], "no column 'finale'; did you mean 'final'"),
        (["--label", "slow"], "--label is 'slow'; expected RUN=NAME"),
        (["--json", "--columns", "final"], "--columns chooses those of a table, but --json prints all"),
        (["--json", "--latex"], "not allowed with argument"),
    ):
        assert main([*argv, *wrong]) == 2
        assert error in capsys.readouterr().err
