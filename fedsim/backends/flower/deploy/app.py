"""Flower app of a run: a folder with a ``pyproject.toml`` that names fedsim's ServerApp and ClientApp."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsim.backends.flower.protocol.policy import Policy
from fedsim.backends.flower.protocol.toml import as_toml

PROJECT = """\
# Settings of `flwr run` and `flwr build`. The apps are part of fedsim, which every node has installed.
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedsim-app"
version = "1.0.0"
description = "A fedsim experiment on Flower"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.43"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedsim"

[tool.flwr.app.components]
serverapp = "fedsim.backends.flower.server.server_app:app"
clientapp = "fedsim.backends.flower.node.client_app:app"

[tool.flwr.app.config]
{config}
"""
DEFAULTS: dict[str, Any] = {
    "experiment": "experiment.yaml",
    "output": "",
    "root": "runs",
    "own-data": 0,
    "log": "",
    **asdict(Policy()),
}
"""Run config read by ``fedsim.backends.flower.server.server_app``."""


def write_app(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write the app's folder; ``config`` overrides the defaults of the run config."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {as_toml(value)}" for key, value in {**DEFAULTS, **config}.items()]
    (folder / "pyproject.toml").write_text(PROJECT.format(config="\n".join(lines)), encoding="utf-8")
    return folder


def built(folder: Path) -> bytes:
    """The app in a folder, as ``flwr run`` sends it."""
    from flwr.cli.build import build_fab_from_disk

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)          # of pathspec, which Flower uses
        return build_fab_from_disk(folder)


def app_hash(folder: Path) -> str:
    """SHA-256 of the app in a folder, by which nodes know it."""
    return hashlib.sha256(built(folder)).hexdigest()
