"""Who may import whom, by the imports as they are written, wherever in a file; and files that stay readable."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import fedsim

ROOT = Path(__file__).parent.parent
OURS = {"fedsim", "algorithms", "topologies", "experiments", "tests"}
LONGEST = 300
"""Lines in a file."""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path, source: str | None = None) -> set[str]:
    """Every module that a file imports, at its top or inside a function, ``from a import b`` as ``a:b``."""
    found: set[str] = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(start + ([node.module] if node.module else []))
            found |= {f"{module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def top(module: str) -> str:
    return module.split(":")[0].split(".")[0]


def test_the_walk_sees_every_way_to_import() -> None:
    source = """
import a.b, c as d
from e.f import g
def h():
    from . import i
    from ..j import k
    importlib.import_module("l.m")
"""
    found = imports(ROOT / "fedsim" / "data" / "file.py", source)
    assert found == {"a.b", "c", "e.f:g", "fedsim.data:i", "fedsim.j:k", "l.m"}


def test_there_are_files_to_look_at() -> None:
    assert len(files("fedsim")) > 20 and len(files("algorithms")) > 4 and files("topologies")


@pytest.mark.parametrize("file", files("fedsim"), ids=lambda f: str(f.relative_to(ROOT)))
def test_the_engine_knows_no_algorithm_topology_or_experiment(file: Path) -> None:
    assert {top(m) for m in imports(file)} & OURS <= {"fedsim"}


@pytest.mark.parametrize("file", files("algorithms"), ids=lambda f: str(f.relative_to(ROOT)))
def test_algorithms_speak_the_vocabulary_only(file: Path) -> None:
    """``from fedsim import ...``, its checks and errors, compressors and problems; and one another."""
    ours = {m.split(":")[0] for m in imports(file) if top(m) in OURS and top(m) != "algorithms"}
    assert ours <= {"fedsim", "fedsim.checks", "fedsim.compress", "fedsim.errors", "fedsim.problems"}
    vocabulary = {m for m in imports(file) if m.startswith("fedsim:")}
    assert vocabulary <= {f"fedsim:{name}" for name in fedsim.__all__}


@pytest.mark.parametrize("file", files("topologies"), ids=lambda f: str(f.relative_to(ROOT)))
def test_topologies_need_numpy_networkx_and_scipy_only(file: Path) -> None:
    allowed = {"numpy", "networkx", "scipy", "topologies"} | set(sys.stdlib_module_names)
    assert {top(m) for m in imports(file)} <= allowed


@pytest.mark.parametrize("package", ["fedsim", "algorithms", "topologies"])
def test_files_stay_short(package: str) -> None:
    long = {str(f.relative_to(ROOT)): n for f in files(package) if (n := len(f.read_text().splitlines())) > LONGEST}
    assert not long
