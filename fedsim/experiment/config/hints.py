"""Types, defaults and docstrings of classes and functions, as settings of a config need them."""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

SCALARS = (int, float, str, bool, Path, types.NoneType)
CONTAINERS = (Union, types.UnionType, list, tuple, dict, collections.abc.Sequence, collections.abc.Mapping)


@cache
def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Named parameters of a class or function, with defaults and resolved types (``Any`` if it has none)."""
    constructed = isinstance(make, type) and not is_dataclass(make)
    hinted = inspect.getattr_static(make, "__init__") if constructed else getattr(make, "func", make)
    try:
        hints = get_type_hints(hinted)
    except NameError:  # a type imported under TYPE_CHECKING
        hints = {}
    made = (
        {f.name: f.default_factory() for f in fields(make) if f.default_factory is not MISSING}
        if is_dataclass(make)
        else {}
    )
    return {
        name: parameter.replace(annotation=hints.get(name, Any), default=made.get(name, parameter.default))
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def is_plain(hint: Any) -> bool:
    """True if values of this type are numbers, strings and containers of these, and not components."""
    if get_origin(hint) in CONTAINERS:
        return all(is_plain(argument) for argument in get_args(hint) if argument is not ...)
    return hint is Any or hint in SCALARS or hint in CONTAINERS or get_origin(hint) is Literal


def literals(hint: Any) -> list[str]:
    """Strings that a type allows by ``Literal``."""
    choices = [get_args(kind) for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
    return [str(choice) for group in choices for choice in group]


def type_in_words(hint: Any) -> str:
    """Describe a type in words: ``float | None`` is "a number or null"."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        types.NoneType: "null",
        Any: "a value",
    }
    if hint in words:
        return words[hint]
    arguments = [argument for argument in get_args(hint) if argument is not ...]
    if get_origin(hint) is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(type_in_words, arguments))
    if get_origin(hint) in CONTAINERS:
        return f"a list in brackets, [a,b], each {type_in_words(arguments[0])}"
    return str(hint)


def summary(target: Any) -> str:
    """First sentence of a docstring, without markup; a full stop in parentheses or after "et al" does not end it."""
    text = " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())
    ends = (found.start() + 1 for found in re.finditer(r"(?<!et al)\. (?=[A-Z`])", text))
    return plain(text[: next((end for end in ends if text.count("(", 0, end) == text.count(")", 0, end)), len(text))])


@cache
def help_of(make: Any) -> dict[str, str]:
    """Docstring text of each parameter, without markup."""
    parsed = docstring_parser.parse(inspect.getdoc(make) or "")
    return {entry.arg_name: plain(" ".join((entry.description or "").split())) for entry in parsed.params}


def plain(text: str) -> str:
    """Docstring text without markup."""
    return text.replace("``", "")
