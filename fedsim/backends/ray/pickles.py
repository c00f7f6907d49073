"""What is sent to workers, and which part of it cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from fedsim.errors import ConfigError

DEEPEST = 8


def pickled(ray: ModuleType, value: Any, parts: Mapping[str, Any]) -> bytes:
    """The bytes of a value.

    Raises:
        ConfigError: it cannot be sent to another process; names the attribute, looked for in ``parts``.
    """
    try:
        data: bytes = ray.cloudpickle.dumps(value)
        return data
    except Exception as error:
        culprits = [name for place, part in parts.items() for name in _culprits(ray, place, part, 0)]
        name = culprits[0] if culprits else next(iter(parts))
        raise ConfigError(
            f"{name} cannot be sent to another process ({type(error).__name__}: {error}); open such things in the"
            " process that uses them, or leave them out"
        ) from error


def _culprits(ray: ModuleType, place: str, value: Any, depth: int) -> Iterator[str]:
    """Places below a value that cannot be pickled, the innermost first."""
    try:
        ray.cloudpickle.dumps(value)
        return
    except Exception:
        if depth < DEEPEST:
            for name, part in _parts(value):
                yield from _culprits(ray, f"{place}{name}", part, depth + 1)
        yield place


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif hasattr(value, "_modules"):                       # an nn.Module: its children by their names
        yield from ((f".{key}", part) for key, part in value._modules.items())
        yield from ((f".{key}", part) for key, part in vars(value).items() if not key.startswith("_"))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in fields(value))
    elif getattr(value, "__closure__", None):
        cells = zip(value.__code__.co_freevars, value.__closure__, strict=True)
        yield from ((f" (its variable {name})", cell.cell_contents) for name, cell in cells)
    elif hasattr(value, "__dict__"):
        yield from ((f".{key}", part) for key, part in vars(value).items())
