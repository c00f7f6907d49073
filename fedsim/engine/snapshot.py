"""What a module holds besides the parameters that are trained: noted, compared, and put back.

A snapshot covers everything reachable from its roots: buffers, attributes, what these contain, generators, and the
variables of hooks and closures. It is flat, by the names that a user would type: ``body.0.running_mean``, ``seen[2]``.
"""

from __future__ import annotations

import math
import pickle
import random
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, range, torch.dtype, torch.device)
"""Kinds of values that cannot change."""

CLOSED = (type, ModuleType, BuiltinFunctionType)
"""Kinds of values that are not looked into."""

GENERATORS: tuple[tuple[type, Callable[[Any], Any], Callable[[Any, Any], object]], ...] = (
    (torch.Generator, lambda g: g.get_state().numpy(), lambda g, state: g.set_state(torch.from_numpy(state))),
    (np.random.Generator, lambda g: g.bit_generator.state, lambda g, state: setattr(g.bit_generator, "state", state)),
    (np.random.RandomState, lambda g: g.get_state(), lambda g, state: g.set_state(state)),
    (random.Random, lambda g: g.getstate(), lambda g, state: g.setstate(state)),
)
"""Generators of random numbers, how to read their state and how to write it."""

MOST = 50_000
"""Values in a snapshot; it leaves out those beyond, as of a module that holds a data set."""


class Snapshot:
    """State of some values at one moment.

    Args:
        roots: the values, by name. What a root named "" holds is called by its own name.

    Attributes:
        values: what was noted, by name.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = {}
        self._undo: list[Callable[[], object]] = []
        self._met: dict[int, tuple[str, Any]] = {}         # by id, which is unique while the value is held
        todo = deque(roots.items())                        # breadth first: the shortest names
        while todo and len(self.values) < MOST:
            name, value = todo.popleft()
            if isinstance(value, PLAIN):
                self.values[name] = value
                continue
            first, _ = self._met.setdefault(id(value), (name, value))
            self.values[name] = type(value), first
            if first == name and not isinstance(value, CLOSED):
                found = _look(name, value)
                if found.noted is not None:
                    self.values[name] = found.noted
                self._undo.append(found.undo)
                todo += found.parts.items()

    def restore(self) -> None:
        """Put everything back as it was."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def differences(self, other: Snapshot, tolerance: float = 0.0) -> list[str]:
        """Names of what is not the same in ``other``; floating-point numbers may differ as in `alike`."""
        a, b = self.values, other.values
        return sorted(n for n in a.keys() | b.keys() if not (n in a and n in b and alike(a[n], b[n], tolerance)))


def alike(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Return whether two values are the same. Entries of floating-point tensors may differ by this share of the largest
    finite one.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if torch.equal(a, b) or not a.is_floating_point():
            return torch.equal(a, b)
        largest = float(a.abs().nan_to_num_(posinf=0.0).max())
        return torch.allclose(a, b, 0.0, tolerance * largest, equal_nan=True)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance) or (a != a and b != b)
    return type(a) is type(b) and bool(a == b)


def _nothing() -> None:
    """Undo nothing."""


class _Found(NamedTuple):
    """What a value holds, by name; how to put it back; and what is noted of it besides its type."""

    parts: dict[str, Any] = {}  # noqa: RUF012
    undo: Callable[[], object] = _nothing
    noted: Any = None


def _look(name: str, value: Any) -> _Found:
    if isinstance(value, Tensor):
        return _look_at_tensor(value)
    if isinstance(value, np.ndarray):
        return _Found({}, partial(_fill, value, value.copy()), (value.dtype, value.shape, value.tobytes()))
    if isinstance(value, tuple | list | deque):
        undo = _nothing if isinstance(value, tuple) else partial(_refill, value, list(value))
        return _Found({f"{name}[{i}]": part for i, part in enumerate(value)}, undo)
    if isinstance(value, set | frozenset):
        undo = partial(_refill, value, set(value)) if isinstance(value, set) else _nothing
        return _Found({}, undo, sorted(map(repr, value)))
    if isinstance(value, dict):
        return _Found({f"{name}[{key!r}]": part for key, part in value.items()}, partial(_refill, value, dict(value)))
    if isinstance(value, MethodType | partial):
        held = ("__self__",) if isinstance(value, MethodType) else ("func", "args", "keywords")
        return _Found({f"{name}.{part}": getattr(value, part) for part in held})
    for kind, read, write in GENERATORS:
        if isinstance(value, kind):
            return _Found({}, partial(write, value, read(value)), pickle.dumps(read(value)))
    return _look_at_cells(name, value) if isinstance(value, FunctionType) else _look_at_attributes(name, value)


def _look_at_tensor(value: Tensor) -> _Found:
    if isinstance(value, nn.Parameter) and value.requires_grad:
        return _Found({}, _nothing, id(value))             # its numbers are the engine's
    if value.layout is not torch.strided or value.is_quantized:
        return _Found({}, _nothing, (id(value), value._version))
    if isinstance(value, nn.Parameter):                    # frozen, and perhaps large: no copy
        return _Found({}, _nothing, torch.sum(value.detach(), dtype=torch.float64))
    copy = value.detach().clone()
    return _Found({}, partial(_fill, value, copy), copy)


def _look_at_cells(name: str, function: FunctionType) -> _Found:
    parts, undo = {}, []
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts[f"{name} (its variable {variable})"] = cell.cell_contents
        except ValueError:                                 # not assigned yet
            continue
        undo.append(partial(setattr, cell, "cell_contents", cell.cell_contents))
    return _Found(parts, lambda: [put() for put in undo])


def _look_at_attributes(name: str, value: Any) -> _Found:
    """Attributes of an object; a module's parameters, buffers and layers are called as in ``state_dict``."""
    inside = getattr(value, "__dict__", {})
    own = [inside]
    if isinstance(value, nn.Module):
        own += [value._parameters, value._buffers, value._modules]
    parts = {key: part for each in own for key, part in each.items() if not any(part is one for one in own)}
    saved = [(each, dict(each)) for each in own]
    dot = f"{name}." if name else ""

    def undo() -> None:
        for each, before in saved:
            _refill(each, before)

    return _Found({f"{dot}{key}": part for key, part in parts.items()}, undo)


def _fill(value: Any, before: Any) -> None:
    """Write an array or a tensor back if it changed: one that did not may not be writable."""
    if isinstance(value, Tensor):
        if not alike(value.detach(), before):
            value.detach().copy_(before)
    elif value.tobytes() != before.tobytes():
        value[...] = before


def _refill(value: Any, before: Any) -> None:
    """Write the contents of a list, set or dict back if they changed."""
    if _identity(value) != _identity(before):
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(before)


def _identity(value: Any) -> list[int]:
    return [id(part) for parts in (value.items() if isinstance(value, dict) else zip(value)) for part in parts]
