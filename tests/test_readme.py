"""Every command and every script of the README and of docs runs, each page in a fresh folder, with exit code 0."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
BLOCKS = {name: re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL) for name, page in PAGES.items()}
MAKE = {"make demo", "make test"}   # they make .venv; tests/experiments/test_demo.py runs what the first one runs


def commands(page: str = "README.md") -> list[str]:
    text = "".join(text for kind, text in BLOCKS[page] if kind == "sh").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [" ".join(line.split("  #")[0].split()) for line in lines]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each page a folder with the repository's experiments, in which its commands run one after the other."""
    found = {}
    for page in PAGES:
        path = found[page] = tmp_path_factory.mktemp(page.removesuffix(".md"))
        for name in ("experiments", "algorithms", "Makefile"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, path / name)
        (path / ".venv").symlink_to(sys.prefix)            # where `make` puts it
    return found


def test_nobody_is_told_to_install_from_an_index() -> None:
    """fedsim is on none."""
    files = [*PAGES.values(), *(ROOT / "fedsim").rglob("*.py"), ROOT / "experiments/flower/pyproject.toml"]
    for file in files:
        assert not re.search(r"pip install ['\"]?fedsim", file.read_text()), file


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


@pytest.mark.parametrize(("page", "command"), [(p, c) for p in PAGES for c in commands(p) if c not in MAKE])
def test_command(folders: dict[str, Path], page: str, command: str) -> None:
    run_here(folders[page], command)


@pytest.mark.parametrize(("page", "script"), [(p, text) for p in PAGES for kind, text in BLOCKS[p] if kind == "python"])
def test_script(folders: dict[str, Path], page: str, script: str) -> None:
    (folders[page] / "script.py").write_text(script)
    run_here(folders[page], "python script.py")


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_pictures_and_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_script_is_the_quickstart() -> None:
    scripts = [text for kind, text in BLOCKS["README.md"] if kind == "python"]
    assert any(text.strip() in (ROOT / "experiments" / "quickstart.py").read_text() for text in scripts)
