"""Every command and every script of the README and of docs runs, each page in a fresh folder, with exit code 0."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.cli import main

pytestmark = [pytest.mark.process, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
BLOCKS = {name: re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL) for name, page in PAGES.items()}
MAKE = {"make demo", "make test"}   # they make .venv; tests/experiments/test_demo.py runs what the first one runs


def commands(text: str) -> list[str]:
    """The lines of a shell block, without comments; a line that ends in a backslash goes on in the next one."""
    lines = [line.split("  #")[0] for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the repository's experiments, and the virtual environment where `make` puts it."""
    for name in ("experiments", "algorithms"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_nobody_is_told_to_install_from_an_index() -> None:
    """fedsim is on none."""
    files = [*PAGES.values(), *(ROOT / "fedsim").rglob("*.py"), ROOT / "experiments/flower/pyproject.toml"]
    for file in files:
        assert not re.search(r"pip install ['\"]?fedsim", file.read_text()), file


def run_command(command: str) -> None:
    """In this process, which has loaded everything, unless it needs a shell or starts Ray."""
    program, *words = shlex.split(command)
    if program == "fedsim" and words[0] != "sweep" and not {"ray", ">"} & set(words):
        assert main(words) == 0
        return
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stdout + result.stderr


def test_commands_of_make_are_targets_of_the_makefile() -> None:
    made = {command for kind, text in BLOCKS["README.md"] if kind == "sh" for command in commands(text)}
    assert {command for command in made if command.startswith("make")} == MAKE
    for command in MAKE:
        assert subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_runs_in_its_order(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, text in BLOCKS[page]:
        if kind == "python":
            file = (re.match(r"# (\w+\.py)\n", text) or ["", "script.py"])[1]   # named by a comment in its first line
            (folder / file).write_text(text)
            runpy.run_path(file, run_name="__main__")
        for command in commands(text) if kind == "sh" else ():
            if command not in MAKE:
                print(command)
                run_command(command)
    assert "Traceback" not in capsys.readouterr().err


def test_the_script_is_the_quickstart() -> None:
    scripts = [text for kind, text in BLOCKS["README.md"] if kind == "python"]
    assert any(text.strip() in (ROOT / "experiments" / "quickstart.py").read_text() for text in scripts)
