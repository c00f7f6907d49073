"""JSON Schema of the file of an experiment, by which editors complete and check it while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fedsim.experiment.config.described import REQUIRED, Setting, aliases, experiment_component
from fedsim.experiment.config.plan import known_of, names, target_of
from fedsim.experiment.config.write import written
from fedsim.experiment.short_forms import ALONE, SHORT

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "string", NoneType: "null"}
OWN = {"type": "string", "pattern": r"^[A-Za-z_]\w*(\.\w+)+$", "description": "my.module.Class: your own"}

Schema = dict[str, Any]


def schema() -> Schema:
    """Schema of the files that `fedsim run` reads, with all components there are."""
    kinds: dict[str, Schema] = {}
    whole = _settings(experiment_component().settings, kinds)
    for short, place in SHORT.items():
        whole["properties"][short] = _at(whole, place) or {"description": f"short for {place}"}
    for word in ALONE:
        several = whole["properties"][word]
        whole["properties"][word] = {**several, "type": ["object", "string"]}
    return {"$schema": DIALECT, "title": "experiment of fedsim", **whole, "$defs": kinds}


def _at(whole: Schema, place: str) -> Schema | None:
    """The schema of a setting by its dotted name, where its owner has no alternatives."""
    found: Schema | None = whole
    for key in place.split("."):
        found = (found or {}).get("properties", {}).get(key)
    return found


def _settings(known: Mapping[str, Setting], kinds: dict[str, Schema]) -> Schema:
    properties = {key: _setting(key, setting, kinds) for key, setting in known.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _setting(key: str, setting: Setting, kinds: dict[str, Schema]) -> Schema:
    below = None if setting.default is REQUIRED else written(setting.default)
    if setting.plain:
        made = _plain(setting.type)
    elif setting.only:
        made = _settings(setting.only.settings, kinds)
        made = {"anyOf": [{"type": "null"}, made]} if setting.optional else made
    else:
        made = {"anyOf": [*_alternatives(setting), {"$ref": f"#/$defs/{_kind(key, kinds)}"}]}
        if isinstance(below, Mapping) and "name" in below:  # settings of the default need no name
            made["anyOf"].append({**_component(key, below["name"], kinds), "required": []})
    if setting.about:
        made["description"] = setting.about
    if setting.default is not REQUIRED and not (isinstance(below, Mapping) and "python" in below):
        made["default"] = below
    return made


def _alternatives(setting: Setting) -> list[Schema]:
    """What may stand for a component: null, a number or a list of them, a word."""
    numbers = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}
    return [
        *([{"type": "null"}] if setting.optional else []),
        *([numbers] if setting.number else []),
        *([{"enum": [*setting.words]}] if setting.words else []),
    ]


def _kind(key: str, kinds: dict[str, Schema]) -> str:
    """Define the components of a kind, each by its name alone or with its settings."""
    if key not in kinds:
        kinds[key] = {}                                    # components may hold others of their own kind
        listed = names(key)
        kinds[key] = {
            "anyOf": [
                *([{"enum": listed}] if listed else []),
                OWN,
                *(_component(key, name, kinds) for name in listed),
                {"type": "object", "properties": {"name": OWN}, "required": ["name"]},
            ]
        }
    return key


def _component(kind: str, name: str, kinds: dict[str, Schema]) -> Schema:
    short = aliases(kind).get(name)
    _, *sources = target_of(kind, short.name if short else name, kind)
    fixed = {*short.settings, *short.without} if short else set()
    known = {key: setting for key, setting in known_of(kind, sources).items() if key not in fixed}
    made = _settings(known, kinds)
    about = str(short) if short else sources[-1].about
    properties = {"name": {"const": name}, **made["properties"]}
    return {**made, "description": about, "properties": properties, "required": ["name"]}


def _plain(hint: Any) -> Schema:
    """Schema of numbers, strings and containers of these."""
    arguments = [argument for argument in get_args(hint) if argument is not ...]
    if hint in TYPES:
        return {"type": TYPES[hint]}
    if get_origin(hint) is Literal:
        return {"enum": arguments}
    if get_origin(hint) in (Union, UnionType):
        return {"anyOf": [_plain(argument) for argument in arguments]}
    if hint is Any:
        return {}
    if isinstance(get_origin(hint) or hint, type) and issubclass(get_origin(hint) or hint, Mapping):
        return {"type": "object"}
    if len(set(arguments)) <= 1:
        return {"type": "array", "items": _plain(arguments[0])} if arguments else {"type": "array"}
    return {"type": "array", "prefixItems": [_plain(argument) for argument in arguments]}
