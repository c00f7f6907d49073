"""Paths among settings, made absolute once, so that a run does not depend on the directory that one stands in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OF_SAMPLES = ("data_dir", "path", "test_path")
"""Settings of data that name its samples; others, as a tokenizer's folder, are of the experiment."""


def absolute(config: Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """The settings with every relative path made absolute, below ``base`` or else the working directory.

    A path is a text at ``data_dir``, ``path`` or a key that ends in ``_path``, and the initial model ``init`` of the
    experiment, no component's; one with a scheme (``s3://``) stays.
    """
    return {key: _absolute(str(key), value, base) for key, value in config.items()}


def paths(config: Any, key: str = "") -> Iterator[str]:
    """Yield every path among settings; ``key`` is their dotted place."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from paths(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from paths(value, key)
    elif _is_path(key, config):
        yield config


def _absolute(key: str, value: Any, base: Path | None) -> Any:
    if isinstance(value, Mapping):
        return {name: _absolute(f"{key}.{name}", item, base) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute(key, item, base) for item in value]
    if not _is_path(key, value):
        return value
    path = Path(value).expanduser()
    return str(path if path.is_absolute() else (base or Path.cwd()).absolute() / path)


def _is_path(place: str, value: Any) -> bool:
    key = place.rpartition(".")[2]
    named = place == "init" or key in ("path", "data_dir") or key.endswith("_path")
    return named and isinstance(value, str) and value != "" and "://" not in value
