"""Hashes of the code of an experiment's components, by module.

Included are the modules of algorithms, topologies and the user's classes and functions, those of their base classes,
and what all these import of the user's own files. fedsim itself and installed packages are identified by their versions
instead. Comments, docstrings and layout do not change a hash.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Experiment

OURS = ("algorithms", "topologies")
Read: TypeAlias = tuple[str, tuple[str, ...]]
"""Hash of a module, and the names that it imports."""

_IMPORTED: dict[str, tuple[ModuleSpec | None, Read]] = {}


def code_of(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of each module that has a part of this experiment, by name; modules without a file are left out."""
    found: dict[str, str] = {}
    todo = sorted({part.__module__ for part in _parts(experiment) if _counts(part.__module__)})
    while todo:
        module = todo.pop()
        if module in found or (file := source_of(module)) is None:
            continue
        found[module], imported = _imported(module, file)
        # Our packages import all of their modules, but a method uses few of them.
        todo += [name for name in imported if name not in OURS and _counts(name)]
    return dict(sorted(found.items()))


def changed(code: Mapping[str, str]) -> list[str]:
    """Modules of `code_of` that have changed since. One that is not found any more counts as unchanged."""
    files = {module: source_of(module) for module in code}
    return [module for module, file in files.items() if file is not None and _on_disk(module, file)[0] != code[module]]


def outdated(modules: Sequence[str]) -> list[str]:
    """The modules among these that this process has imported and hashed, and that have changed since."""
    files = {module: source_of(module) for module in modules}
    return [m for m, file in files.items() if file is not None and _imported(m, file) != _on_disk(m, file)]


@lru_cache(maxsize=1024)
def source_of(module: str) -> Path | None:
    """File of a module, found without importing it or the packages around it."""
    path: Sequence[str] | None = sys.path
    file, parts = None, module.split(".")
    for depth in range(len(parts)):
        # Only packages have a path; with None, the last name would be looked up on sys.path.
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), path) if path is not None else None
        if spec is None:
            return None
        path, file = spec.submodule_search_locations, spec.origin
    return Path(file) if file and file.endswith(".py") else None


def current(experiment: Experiment) -> bool:
    """Whether an experiment's classes and functions are still those of their modules, which may have been reloaded."""
    return all(
        getattr(sys.modules.get(part.__module__), part.__qualname__, part) is part for part in set(_parts(experiment))
    )


def _counts(module: str) -> bool:
    """Whether a module belongs to a user or to the algorithms, and not to fedsim, Python or an installed package."""
    top = module.partition(".")[0]
    if top in OURS:
        return source_of(module) is not None
    if top in ("fedsim", "__main__") or top in sys.stdlib_module_names:
        return False
    file = source_of(module)
    return file is not None and not {"site-packages", "dist-packages"} & set(file.parts)


def _parts(value: Any) -> Iterator[type | FunctionType]:
    """The functions that a value is made of, and the classes, with their base classes."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, type):
        yield from value.__mro__
    elif isinstance(value, partial):
        yield from _parts([value.func, value.args, value.keywords])
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _parts(child)
    elif isinstance(value, tuple | list):
        for child in value:
            yield from _parts(child)
    elif value is not None and not isinstance(value, bool | int | float | str):
        yield from type(value).__mro__
        for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            yield from _parts(getattr(value, field.name))


def _imported(module: str, file: Path) -> Read:
    """Hash and imports of a module as this process has imported it: the file may have been changed since."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    if spec is None:
        return _on_disk(module, file)
    if module not in _IMPORTED or _IMPORTED[module][0] is not spec:      # a reloaded module has a new one
        _IMPORTED[module] = spec, _on_disk(module, file)
    return _IMPORTED[module][1]


def _on_disk(module: str, file: Path) -> Read:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return _read(file, package, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _read(file: Path, package: str, changed: int) -> Read:
    """Hash and imports of a file in a package; ``changed``, the time of its last change, is a key of the cache."""
    text = file.read_text()
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return hashlib.sha256(text.encode()).hexdigest(), ()
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:                            # above the package, which no import of it survives
                continue
            imported += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imported)
