"""The Flower that is installed here: its version, its commands, and an environment in which it stays offline."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from fedsim.errors import DeployError, how_to_install

OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""No reports, no look for updates, and no packages installed when an app starts."""


def flower_version() -> str:
    """Version of Flower.

    Raises:
        DeployError: it is not installed.
    """
    try:
        return importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        raise DeployError(f"deployment needs Flower, which is not installed; {how_to_install('flower')}") from None


def command(name: str) -> str:
    """Path of one of Flower's commands, which are installed beside this Python.

    Raises:
        DeployError: it is not there.
    """
    flower_version()
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DeployError(f"Flower {flower_version()} has no command {path}; install it in the same environment")
    return str(path)


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of Flower's processes: offline, a home of its own, and where commands and modules are found."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    modules = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    found = os.pathsep.join([str(Path(part).absolute()) for part in modules] + [str(Path.cwd())])
    return {**os.environ, **OFFLINE, "PATH": path, "PYTHONPATH": found, "FLWR_HOME": str(home), **extra}
