"""Checks of hyper-parameters, used in ``__post_init__`` so that a bad value fails before anything runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from fedsim.errors import ConfigError


def positive(settings: Any, *names: str) -> None:
    """Require each named field to be a finite number above 0."""
    for name in names:
        _require(settings, name, lambda v: v > 0, "a finite number above 0")


def non_negative(settings: Any, *names: str) -> None:
    """Require each named field to be a finite number, 0 or more."""
    for name in names:
        _require(settings, name, lambda v: v >= 0, "a finite number, 0 or more")


def in_range(settings: Any, name: str, low: float, high: float, closed: bool = False) -> None:
    """Require the named field to be in [low, high), or in [low, high] if ``closed``."""
    end = "]" if closed else ")"
    _require(settings, name, lambda v: low <= v < high or (closed and v == high), f"a number in [{low}, {high}{end}")


def share(settings: Any, name: str) -> None:
    """Require the named field to be above 0 and at most 1."""
    _require(settings, name, lambda v: 0 < v <= 1, "a number above 0 and at most 1")


def at_least_one(settings: Any, *names: str) -> None:
    """Require each named field to be a whole number, 1 or more."""
    for name in names:
        whole(f"{type(settings).__name__}.{name}", getattr(settings, name), 1)


def whole(place: str, value: Any, least: int, also: str = "") -> None:
    """Require ``value`` of setting ``place`` to be a whole number, ``least`` or more; ``also`` extends the error."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{place} is {value!r}; expected a whole number, {least} or more{also}")


def number(place: str, value: Any, test: Callable[[float], bool], expected: str) -> None:
    """Require ``value`` of setting ``place`` to be a finite number that passes ``test``, described by ``expected``."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value) or not test(float(value)):
        raise ConfigError(f"{place} is {value!r}; expected {expected}")


def takes(place: str, function: Callable[..., Any], *names: str) -> None:
    """Require a user's function to take as many positional arguments as these; ``place`` says what it is."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):                        # some built-in functions have none
        return
    try:
        signature.bind(*names)
    except TypeError:
        raise ConfigError(f"{place} has parameters {signature}; expected ({', '.join(names)})") from None


def component(place: str, value: Any, verbs: Sequence[str], example: str) -> None:
    """Require a component to be an object with some methods, and not a class, a name or a number."""
    if isinstance(value, type) or not all(callable(getattr(value, verb, None)) for verb in verbs):
        given, can = f"the class {value.__name__}" if isinstance(value, type) else repr(value), ", ".join(verbs)
        raise ConfigError(f"{place} is {given:.200}; expected e.g. {example}, or another object with {can}")


def texts(settings: Any, *names: str) -> None:
    """Require each named field to be a text."""
    for name in names:
        if not isinstance(value := getattr(settings, name), str):
            place = f"{type(settings).__name__}.{name}"
            raise ConfigError(f"{place} is {value!r:.80}; expected a text, with commas between several names")


def plain_name(name: str) -> None:
    """Require the name of a run to be a valid directory name."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ConfigError(f"name is {name!r}; expected a plain directory name, without / and not starting with a dot")


def one_of(settings: Any, name: str, choices: Sequence[str]) -> None:
    """Require the named field to be one of ``choices``."""
    value = getattr(settings, name)
    if value not in choices:
        raise ConfigError(
            f"{type(settings).__name__}.{name} is {value!r}; expected one of {', '.join(map(repr, choices))}"
        )


def _require(settings: Any, name: str, test: Callable[[float], bool], expected: str) -> None:
    number(f"{type(settings).__name__}.{name}", getattr(settings, name), test, expected)
