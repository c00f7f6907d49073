"""Words of errors and of progress."""

from __future__ import annotations

import pytest

from fedsim.cli import main
from fedsim.controller.progress import RunProgress
from fedsim.errors import few, in_bytes, many, suggest
from fedsim.experiment.config.names import CATALOGUES


def test_counts_agree_with_their_nouns() -> None:
    assert [many(n, "client") for n in (0, 1, 2, 12_345)] == ["no clients", "1 client", "2 clients", "12,345 clients"]


def test_bytes_have_a_unit_that_shows_them() -> None:
    found = [in_bytes(n) for n in (0, 60, 5_240, 99_999, 100_000, 220_800_000, 1.5e10)]
    assert found == ["0.0 kB", "0.1 kB", "5.2 kB", "0.1 MB", "0.1 MB", "220.8 MB", "15,000.0 MB"]


def test_progress_of_little_is_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress("run", 1) as progress:
        progress.start(0, 0)
        progress.update(1, accuracy=0.5, sent=5_240)
    assert "round 1/1" in (said := capsys.readouterr().err) and said.endswith("accuracy 0.500  5.2 kB\n")


def test_suggestions_name_what_is_near_and_what_is_meant() -> None:
    assert suggest("Addam", ["SGD", "Adam"], ["--algorithm FedAdam"]) == (
        "did you mean 'Adam' or --algorithm FedAdam? Known: SGD, Adam"
    )
    assert suggest("x", [], ["--y"]) == "did you mean --y? Known: none"
    assert suggest("x", []) == "known: none"
    assert suggest("cnn", ["MLP", "McMahanCNN"]).startswith("did you mean 'McMahanCNN'?")
    assert suggest("median", ["Mean", "GeometricMedian"]).startswith("did you mean 'Mean' or 'GeometricMedian'?")
    assert suggest("Dirichlet", ["InnerDirichlet", "Dirichlets"]).startswith("did you mean 'Dirichlets'?")


def test_of_many_names_the_nearest_are_told_and_where_all_are() -> None:
    known = ["Adam", "SGD", *(f"setting_{k}" for k in range(40))]
    said = suggest("Addam", known, see="fedsim list optimizers", own="my.module.Class (your own)")
    assert said.startswith("did you mean 'Adam'? Known: Adam, ") and said.count(", ") == 6
    assert said.endswith(", my.module.Class (your own), and 37 others: fedsim list optimizers")
    assert suggest("settin_7", known).startswith("did you mean 'setting_7'? Known: setting_7, setting_")
    assert suggest("x", known[:12]) == f"known: {', '.join(known[:12])}"
    assert few(known[:12]) == ", ".join(known[:12]) and few(known[:13]).endswith("setting_2, and 8 others")


def test_every_kind_of_component_has_its_list(capsys: pytest.CaptureFixture[str]) -> None:
    for name in {of.section for of in CATALOGUES.values()}:
        assert main(["list", name]) == 0
    capsys.readouterr()
    for argv in (["run", "--algorithm", "FedAvgg"], ["run", "--algorithm", "FedAvg", "--metrics", "f11"], ["run"]):
        assert main(argv) == 2
        assert len(said := capsys.readouterr().err) < 300 and " others: fedsim list " in said
    assert main(["run", "--algorithm", "FedAvg", "--data", "mnst"]) == 2
    assert "did you mean 'mnist'? Known: mnist, fashion_mnist, " in capsys.readouterr().err
