"""Diagnosis of values that cannot be copied or sent to another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fedsim.errors import ConfigError

DEEPEST = 8


def refused(error: Exception, what: str, parts: Mapping[str, Any], attempt: Callable[[Any], object]) -> ConfigError:
    """Build the error for a value on which ``attempt`` fails; it names the innermost part at fault.

    Args:
        error: the exception raised.
        what: the failed operation in the passive, such as "be copied".
        parts: parts of the value to search, by names known to the user.
        attempt: the failed operation.
    """
    found = [place for name, part in parts.items() for place in _culprits(attempt, name, part, 0)]
    return ConfigError(
        f"{found[0] if found else next(iter(parts))} cannot {what} ({type(error).__name__}: {error}); create such"
        " objects where they are used, or leave them out"
    )


def _culprits(attempt: Callable[[Any], object], place: str, value: Any, depth: int) -> Iterator[str]:
    """Places below a value at which the attempt fails, innermost first."""
    try:
        attempt(value)
        return
    except Exception:
        if depth < DEEPEST:
            for name, part in _parts(value):
                yield from _culprits(attempt, f"{place}{name}", part, depth + 1)
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
