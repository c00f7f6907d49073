"""Every command and every script of the README runs, in a fresh folder, and ends with exit code 0."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
MAKE = {"make demo", "make test"}                          # run by hand and by continuous integration


def commands() -> list[str]:
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's experiments, in which the README's commands run one after the other."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("experiments", "algorithms", "Makefile"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path / name)
    return path


def run_here(folder: Path, command: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}   # one thread does not wait for others on a busy machine
    result = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert set(commands()) >= MAKE
    for command in MAKE:
        made = subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, check=False)
        assert made.returncode == 0


@pytest.mark.parametrize("command", [c for c in commands() if c not in MAKE])
def test_command(folder: Path, command: str) -> None:
    run_here(folder, command)


@pytest.mark.parametrize("script", [text for kind, text in BLOCKS if kind == "python"])
def test_script(folder: Path, script: str) -> None:
    (folder / "script.py").write_text(script)
    run_here(folder, "python script.py")


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_script_is_the_quickstart() -> None:
    scripts = [text for kind, text in BLOCKS if kind == "python"]
    assert any(text.strip() in (ROOT / "experiments" / "quickstart.py").read_text() for text in scripts)
