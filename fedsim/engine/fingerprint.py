"""Fingerprints of local steps: what decides how a step behaves, its tensors aside.

A recording stands for a step as long as its code, what the code captures and what it looks up are the same. A step that
reads what may change unnoticed, such as a list, or writes outside of itself, such as a counter, has no fingerprint.
"""

from __future__ import annotations

import dis
from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property, lru_cache
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.engine.tape import Unreplayable

CONSTANTS = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device)

LIBRARIES = (
    *("torch", "fedsim", "numpy", "math", "cmath", "operator", "_operator", "builtins", "functools", "itertools"),
    *("collections", "typing", "dataclasses"),
)
"""Packages whose functions do not change between rounds."""


def fingerprint(value: Any, local: object) -> Hashable:
    """Key that is equal only for values with which a step behaves identically; ``local`` represents itself.

    Raises:
        Unreplayable: the value is of a kind that may change unnoticed, or is code that writes outside of itself.
    """
    found = _Fingerprint(local)
    return found.of(value), found.of_members()


class _Fingerprint:
    def __init__(self, local: object) -> None:
        self.local = local
        self._within: list[FunctionType] = []              # functions under inspection, which may be recursive
        self._holders: dict[type | ModuleType, None] = {}  # users' classes and modules, in the order of inspection
        self._names: dict[str, None] = {"__call__": None}  # that the functions look up, of whatever has them

    def of(self, value: Any) -> Hashable:
        if value is self.local:
            return "local"
        if isinstance(value, CONSTANTS):
            return type(value), repr(value)  # repr tells 1 from True and 0.0 from -0.0
        if isinstance(value, tuple):
            return self.of(type(value)), tuple(map(self.of, value))
        if is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return self.of(type(value)), tuple(self.of(getattr(value, f.name)) for f in fields(value))
        if isinstance(value, MethodType):
            return self.of((value.__func__, value.__self__))
        if isinstance(value, FunctionType):
            return self._of_function(value)
        if isinstance(value, BuiltinFunctionType):         # of a module, or a method of some value
            return value, self._of_owner(value.__self__)
        if isinstance(value, (ModuleType, type)):
            if not _in_library(value):
                self._holders[value] = None
            return value
        if isinstance(value, np.ufunc):
            return value
        raise Unreplayable(f"the step captures a {type(value).__name__}")

    def _of_owner(self, owner: Any) -> Hashable:
        if isinstance(owner, ModuleType) and not _in_library(owner):
            raise Unreplayable(f"the step calls a function of {owner.__name__}")
        return self.of(owner)

    def _of_function(self, function: FunctionType) -> Hashable:
        if _in_library(function):
            return function
        if function in self._within:
            return "itself", self._within.index(function)
        self._within.append(function)
        inside = tuple(cell.cell_contents for cell in function.__closure__ or ())
        code, named = function.__code__, function.__globals__
        looked_up, names = _lookups(code)
        self._names |= dict.fromkeys(names)
        outside = tuple(named[name] for name in looked_up if name in named)
        defaults = function.__defaults__, tuple((function.__kwdefaults__ or {}).items())
        found = self.of((inside, defaults, outside, tuple(vars(function).items())))
        self._within.pop()
        return code, found

    def of_members(self) -> Hashable:
        """What users' classes and modules hold under names that the functions look up, which may lead to more."""
        found: dict[tuple[Any, str], Hashable] = {}
        while new := [at for at in self._members() if at not in found]:
            for holder, name in new:
                found[holder, name] = self._of_member(vars(holder)[name])
        return tuple(found.items())

    def _members(self) -> list[tuple[type | ModuleType, str]]:
        holders = dict.fromkeys(base for each in self._holders for base in getattr(each, "__mro__", (each,)))
        return [
            (holder, name) for holder in holders if not _in_library(holder)
            for name in self._names if name in vars(holder) and name not in _fields(holder)
        ]  # fmt: skip

    def _of_member(self, member: Any) -> Hashable:
        if isinstance(member, staticmethod | classmethod):
            return self.of(member.__func__)
        if isinstance(member, property):
            return self.of(member.fget)
        return self.of(member.func if isinstance(member, cached_property) else member)


def _fields(holder: type | ModuleType) -> tuple[str, ...]:
    """Fields of a NamedTuple or dataclass, whose values are those of the instance."""
    return (*getattr(holder, "_fields", ()), *getattr(holder, "__dataclass_fields__", ()))


def _in_library(value: Any) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return (name or "").partition(".")[0] in LIBRARIES


class _Lookups(NamedTuple):
    """Names that code looks up: globals, and all, with those of attributes."""

    outside: tuple[str, ...]
    names: tuple[str, ...]


@lru_cache(maxsize=256)
def _lookups(code: CodeType) -> _Lookups:
    """Names that code looks up, with the functions written in it.

    Raises:
        Unreplayable: it writes outside of itself, or imports.
    """
    outside, names = dict[str, None](), dict[str, None]()
    for part in _parts(code):
        names |= dict.fromkeys(part.co_names)
        for at in dis.get_instructions(part):
            if at.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                outside[at.argval] = None
            elif at.opname in WRITES or (at.opname in DEREFERENCED and at.argval in code.co_freevars):
                raise Unreplayable(f"the step writes {at.argval}, which is not its own, or imports it")
    return _Lookups(tuple(outside), tuple(names))


WRITES = ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "IMPORT_NAME")

DEREFERENCED = ("STORE_DEREF", "DELETE_DEREF")


def _parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
