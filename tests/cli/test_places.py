"""Places to write that a user has named: where nothing can be written, a line says why, and nothing is computed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedsim.cli import main
from fedsim.errors import PlaceError, RunError
from fedsim.record.figures import kind_of
from fedsim.record.places import check_file, refusal, writing
from tests.cli.test_commands import TINY
from tests.report.test_compare import make_run

SMALL = ("--data", "digits", "--partition.num_partitions", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"), "run", {0: [0.5, 0.9]})


@pytest.mark.parametrize(
    ("command", "example"),
    [
        (["report", "{run}", "--output"], "report.html"),
        (["compare", "{run}", "--csv"], "table.csv"),
        (["compare", "{run}", "--plot"], "picture.png"),
        (["timeline", "{run}", "--output"], "picture.png"),
        (["partition", *SMALL, "--output"], "picture.png"),
        (["partition", *SMALL, "--save"], "samples.npz"),
        (["topology", *SMALL, "--output"], "picture.png"),
        (["byzantine", *SMALL, "--algorithm", "FedAvg", "--sampling.fraction", "1", "--attacks", "IPM", "--heat-map"],
         "picture.png"),
    ],
)  # fmt: skip
def test_a_folder_in_the_place_of_a_file_is_a_wrong_argument(
    command: list[str], example: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main([*(word.format(run=run) for word in command), "here"]) == 2
    said = f"fedsim: cannot write here: it is a folder; expected a file, such as here/{example}\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


@pytest.mark.parametrize(
    "command",
    [
        ["report", "{run}", "--output", "file/x.html"],
        ["compare", "{run}", "--csv", "file/x.csv"],
        ["compare", "{run}", "--plot", "file/x/y.png"],
        ["export", "{run}", "--to", "tensorboard", "file"],
        ["run", "--algorithm", "FedAvg", "{tiny}", "--output", "file/x"],
        ["run", "--algorithm", "FedAvg", "{tiny}", "--root", "file"],
        ["sweep", "--algorithm", "FedAvg", "{tiny}", "--algorithm.lr", "0.1,0.2", "--jobs", "1", "--output", "file/x"],
        ["sweep", "--algorithm", "FedAvg", "{tiny}", "--algorithm.lr", "0.1,0.2", "--jobs", "1", "--root", "file"],
        ["certificates", "--nodes", "1", "--output", "file"],
        ["deploy", "--algorithm", "FedAvg", "{tiny}", "--nodes", "3", "--print-commands", "--output", "file/x"],
    ],
)
def test_nothing_is_written_below_a_file(
    command: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words = [part for word in command for part in (TINY if word == "{tiny}" else [word.format(run=run)])]
    assert main(words) == 2
    assert f"{tmp_path / 'file'} is no folder; choose another " in (said := capsys.readouterr().err)
    assert said.count("\n") == 1 and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_full_disk_is_no_wrong_argument(tmp_path: Path) -> None:
    said = r"cannot write .*x: No space left on device; choose another file"
    with pytest.raises(RunError, match=said) as full, writing(tmp_path / "new" / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.exit_code == 1 and (tmp_path / "new").is_dir()
    assert refusal(tmp_path, OSError(errno.EROFS, "Read-only file system")).exit_code == 2


def test_folders_that_are_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_file(tmp_path / "new" / "x", "x")
    (tmp_path / "x.svg").touch()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(PlaceError, match=f"you may not write in {tmp_path}; choose another file"):
            check_file(tmp_path / "new" / "x", "x")
        assert kind_of(tmp_path / "x.svg") == "svg"        # there already; whether it can be replaced is seen then

    def closed(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    assert main(["verify", str(tmp_path)]) == 2
    assert f"fedsim: you may not open {tmp_path}" in capsys.readouterr().err
