"""The shape of the code, read from its imports wherever they stand: no arrow up, no circle, short files."""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import fedsim

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("topologies",),
    ("fedsim.arrays", "fedsim.errors", "fedsim.checks", "fedsim.seeds", "fedsim.values", "fedsim.tree", "fedsim.types"),
    ("fedsim.gossip", "fedsim.messages", "fedsim.compress", "fedsim.record"),
    ("fedsim.clock",),
    ("fedsim.data", "fedsim.models", "fedsim.partition", "fedsim.problems"),
    ("fedsim.engine",),
    ("fedsim.clients", "fedsim.algorithm"),
    ("fedsim.feedback", "fedsim.robust", "fedsim.privacy"),
    ("fedsim.experiment",),
    ("fedsim.controller",),
    ("fedsim.backends",),
    ("fedsim.api", "fedsim.report"),
    ("fedsim.sweeps",),
    ("fedsim.cli", "fedsim.__main__"),
    ("fedsim",),
    ("algorithms",),
    ("experiments",),
    ("benchmarks", "tests"),
)
"""Rooms, from the ground floor up. A module imports from its own floor and those below."""

VOCABULARY = {"fedsim", "fedsim.checks", "fedsim.compress", "fedsim.errors", "fedsim.feedback", "fedsim.problems"}
SPEAKS = {
    "topologies": set[str](),
    "fedsim.report": {"fedsim.arrays", "fedsim.errors", "fedsim.experiment", "fedsim.record", "topologies"},
    "algorithms": VOCABULARY,
}
"""All that some rooms import besides themselves."""

UP: set[tuple[str, str]] = set()
"""Imports that run up, known and to be mended."""

CIRCULAR: set[tuple[str, str]] = set()
"""Imports that close a circle, known and to be mended."""

LONGEST = 400
"""Lines in a file."""
LONG: set[str] = set()


def files(*packages: str) -> list[Path]:
    return [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]


def name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, source: str | None = None) -> set[str]:
    """Every module or name that a file imports, in whatever block; ``a.b`` from ``from a import b``."""
    found: set[str] = set()
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(start + ([node.module] if node.module else []))
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def within(module: str, names: set[str]) -> str:
    """The longest of these names that is the module or a package above it; "" for none."""
    while module not in names and module:
        module = module.rpartition(".")[0]
    return module


FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {name(file): file for file in files("fedsim", "algorithms", "topologies", "experiments")}
THERE = set(MODULES) | set(FLOOR)
ARROWS = {
    module: {to for found in imports(file) if (to := within(found, THERE)) and to != module}
    for module, file in MODULES.items()
}
"""For each module those that it imports."""


def room(module: str) -> str:
    return within(module, set(FLOOR))


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_walk_sees_every_way_to_import() -> None:
    source = """
import a.b, c as d
from e.f import g
if TYPE_CHECKING:
    from . import i
def h():
    from ..j import k
    importlib.import_module("l.m")
"""
    found = imports(ROOT / "fedsim" / "data" / "file.py", source)
    assert found == {"a.b", "c", "e.f.g", "fedsim.data.i", "fedsim.j.k", "l.m"}
    assert len(MODULES) > 150 and "fedsim.engine.loop" in ARROWS["fedsim.engine.blocks"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b"}, "b": {"c"}})


def test_no_arrow_runs_up() -> None:
    up = {(m, to) for m, found in ARROWS.items() for to in found if FLOOR[room(to)] > FLOOR[room(m)]}
    assert up == UP


def test_no_circle_among_modules_or_rooms() -> None:
    arrows = {m: {to for to in found if (m, to) not in CIRCULAR} for m, found in ARROWS.items()}
    assert not circle(arrows)
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, found in arrows.items():
        rooms[room(module)] |= {room(to) for to in found} - {room(module)}
    assert not circle(rooms)
    for module, to in CIRCULAR:
        assert circle({**arrows, module: arrows[module] | {to}}), f"{module} -> {to} closes no circle any more"


def test_some_rooms_speak_a_vocabulary_only() -> None:
    for module, found in ARROWS.items():
        others = {within(to, VOCABULARY | set(FLOOR)) for to in found if room(to) != room(module)}
        assert others <= SPEAKS.get(room(module), others), module
    words = {found for file in files("algorithms") for found in imports(file) if found.rpartition(".")[0] == "fedsim"}
    assert words <= {f"fedsim.{word}" for word in fedsim.__all__} | VOCABULARY
    foreign = {found.split(".")[0] for file in files("topologies") for found in imports(file)}
    assert foreign <= {"numpy", "networkx", "scipy", "topologies"} | set(sys.stdlib_module_names)


def test_the_ground_floor_is_small_and_files_are_short() -> None:
    assert len(list((ROOT / "fedsim").glob("*.py"))) <= 12
    every = files("fedsim", "algorithms", "topologies", "experiments", "benchmarks", "tests")
    assert {str(f.relative_to(ROOT)) for f in every if len(f.read_text().splitlines()) > LONGEST} == LONG


def test_public_classes_have_names_of_their_own() -> None:
    trees = [ast.parse(file.read_text()) for file in files("fedsim")]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert not {name for name, count in names.items() if count > 1 and not name.startswith("_")}


def test_what_fedsim_exports_is_there() -> None:
    assert len(set(fedsim.__all__)) == len(fedsim.__all__) and all(hasattr(fedsim, name) for name in fedsim.__all__)
