"""Installed Flower: its version, its commands, and an environment in which it stays offline."""

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
"""Disable telemetry, update checks, and the installation of packages when an app starts."""
PAINT = ("FORCE_COLOR", "TTY_COMPATIBLE")
"""Ask for colours where there is no terminal, as notebooks and build servers do; painted JSON is none."""
HERE = "localhost,127.0.0.1,::1"
"""This machine, whose servers are reached without the proxy that the environment may name."""


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
    """Path of a Flower command, installed beside this Python.

    Raises:
        DeployError: the command does not exist.
    """
    flower_version()
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DeployError(f"Flower {flower_version()} has no command {path}; install it in the same environment")
    return str(path)


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Environment of Flower's processes: offline, without colours, with its own home, this process's search paths, and
    no proxy on the way to this machine.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    folders = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    modules = os.pathsep.join([str(Path(part).absolute()) for part in folders] + [str(Path.cwd())])
    found = {"PATH": path, "PYTHONPATH": modules, "FLWR_HOME": str(home)}
    if folder := os.environ.get("FEDSIM_DATA"):
        found["FEDSIM_DATA"] = str(Path(folder).expanduser().absolute())
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        found[name] = ",".join(filter(None, [os.environ.get(name), HERE]))
    ours = {name: value for name, value in os.environ.items() if name not in PAINT}
    return {**ours, **OFFLINE, **found, **extra}
