"""The code that an experiment's own components come from, as hashes by module.

Counted are the modules of algorithms, topologies and a user's classes and functions, and what these import from their
own package. Of fedsim itself the version counts. Comments, docstrings and layout do not.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from types import FunctionType
from typing import Any

from fedsim.experiment.experiment import Experiment


def code_of(experiment: Experiment) -> dict[str, str]:
    """SHA-256 by name of each module that has a part of this experiment; one without a file is left out."""
    found: dict[str, str] = {}
    todo = sorted({module for module in _modules(experiment) if _counts(module)})
    while todo:
        module = todo.pop()
        if module in found or (file := source_of(module)) is None:
            continue
        found[module], imported = _read(file, file.stat().st_mtime_ns)
        package = module.partition(".")[0]
        todo += [name for name in imported if name.partition(".")[0] == package and source_of(name) is not None]
    return dict(sorted(found.items()))


def changed(code: Mapping[str, str]) -> list[str]:
    """Modules of `code_of` that have changed since; those that are not found any more are not known to have."""
    files = {module: source_of(module) for module in code}
    return [
        module for module, file in files.items() if file is not None
        and _read(file, file.stat().st_mtime_ns)[0] != code[module]
    ]  # fmt: skip


@lru_cache(maxsize=1024)
def source_of(module: str) -> Path | None:
    """File of a module, found without importing it or the packages around it."""
    path: Sequence[str] | None = sys.path
    file, parts = None, module.split(".")
    for depth in range(len(parts)):
        # A module that is no package has no path. Without one, its last name would be looked up on sys.path.
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), path) if path is not None else None
        if spec is None:
            return None
        path, file = spec.submodule_search_locations, spec.origin
    return Path(file) if file and file.endswith(".py") else None


def _counts(module: str) -> bool:
    """Whether a module belongs to a user or to the algorithms, and not to fedsim or an installed library."""
    top = module.partition(".")[0]
    if top in ("algorithms", "topologies"):
        return True
    return top not in ("fedsim", "builtins", "__main__", *_installed())


@lru_cache(maxsize=1)
def _installed() -> frozenset[str]:
    return frozenset(packages_distributions())


def _modules(value: Any) -> Iterator[str]:
    """Modules of the classes and functions that a value is made of."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__module__
        for field in dataclasses.fields(value):
            yield from _modules(getattr(value, field.name))
    elif isinstance(value, type | FunctionType):
        yield value.__module__
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _modules(child)
    elif isinstance(value, tuple | list):
        for child in value:
            yield from _modules(child)
    elif value is not None and not isinstance(value, bool | int | float | str):
        yield type(value).__module__


@lru_cache(maxsize=1024)
def _read(file: Path, changed: int) -> tuple[str, tuple[str, ...]]:
    """Hash of a module that was changed at this time, and the names that it imports."""
    text = file.read_text()
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return hashlib.sha256(text.encode()).hexdigest(), ()
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imported)
