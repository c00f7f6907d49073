"""Private Ray session: silent, never an existing one by accident, shut down afterwards. `load` imports Ray.

A session is local unless an address is given; then it joins that cluster, whose machines need fedsim installed. Its
files are in a temporary folder that is removed at the end; that of a killed process is removed by the next session.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from fedsim.errors import ConfigError, how_to_install

OLDEST, NEWEST = (2, 55, 1), (3,)
"""Supported versions of Ray: from the first up to the second, exclusive."""
TOKEN = uuid.uuid4().hex
"""Authentication token of this session's processes: other users of the machine can reach its ports."""
PREFIX = "fedsim-ray-"
ATTEMPTS = 3
"""Attempts to start a session: Ray times out after 30 seconds, too soon on a busy machine."""
PATIENCE = 10.0
"""Seconds to wait for a connection to a cluster."""
SOCKET_ROOM = 90
"""Bytes Ray appends to its folder for a socket path, of which the system allows 107."""


def load() -> ModuleType:
    """Import Ray.

    Raises:
        ConfigError: it is not installed, or its version is not supported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")            # errors are raised, or in the log files
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")   # a task without reserved GPU may use one
    os.environ.setdefault("RAY_worker_niceness", "0")                  # Ray's default of 15 starves beside others
    try:
        ray = import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError(f"Ray is not installed; {how_to_install('ray')}") from None
    version = tuple(int(part) if part.isdecimal() else -1 for part in ray.__version__.split(".")[:3])
    if not OLDEST <= version < NEWEST:
        known = f"{'.'.join(map(str, OLDEST))} or newer, below {NEWEST[0]}"
        raise ConfigError(f"Ray {ray.__version__} is installed; expected {known}: {how_to_install('ray')}")
    return ray


@contextlib.contextmanager
def session(
    *,
    address: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    object_store_bytes: int | None = None,
    log_to_driver: bool = False,
) -> Iterator[ModuleType]:
    """Connect to Ray; on exit disconnect, and shut a local session down.

    Args:
        address: of a cluster to join, such as ``10.0.0.1:6379``; by default a local session is started.
        cpus: CPUs of a local session; all by default.
        gpus: GPUs of a local session; all by default.
        object_store_bytes: size of a local session's object store; Ray's default share of memory by default.
        log_to_driver: print the workers' output.

    Raises:
        ConfigError: Ray is missing or unsupported, this process is connected already, or the address is unreachable.
    """
    if address is not None:
        _reach(address)
    if not log_to_driver:                                  # silence Ray's own messages on stdout: errors are raised
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    ray = load()
    if ray.is_initialized():
        raise ConfigError("this process is connected to a Ray session already; call ray.shutdown() before")
    common = {"logging_level": "CRITICAL", "log_to_driver": log_to_driver, "namespace": f"fedsim-{uuid.uuid4().hex}"}
    at_end = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(_environment({"RAY_AUTH_TOKEN": TOKEN, **_paths()}))
            folder = stack.enter_context(_folder())
            own = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": object_store_bytes}
            settings: dict[str, Any] = {"address": "local", "include_dashboard": False, "_temp_dir": str(folder), **own}
        else:
            settings = {"address": address, "runtime_env": {"env_vars": _paths()}}
        stack.callback(ray.shutdown)
        _connect(ray, settings | common, address)
        _restore_handler(at_end)                           # Ray's handler would exit at once
        yield ray


def _reach(address: str) -> None:
    """Raise ConfigError if the address refuses connections, which Ray notices only after a quarter of an hour."""
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")            # if another service listens there
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ConfigError(f"ray.address is {address!r}; expected host:port of a head, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"the Ray cluster at {address} does not answer: {error}; is the address right, and does"
            " `ray start --head` run there?"
        ) from error


def _connect(ray: ModuleType, settings: Mapping[str, Any], address: str | None) -> None:
    for _ in range(ATTEMPTS):
        if not (reason := _refusal(ray, settings)):
            return
        if "timed out during startup" not in reason:
            break
    what = f"the Ray cluster at {address} does not answer" if address else "Ray does not start"
    fix = "is it Ray's, and of the same version?" if address else "is the machine very busy?"
    if address and "authentication token" in reason.lower():
        fix = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what ~/.ray/auth_token holds on its head"
    raise ConfigError(f"{what}: {reason}; {fix}")


def _refusal(ray: ModuleType, settings: Mapping[str, Any]) -> str:
    """Start Ray; return why it did not, with nothing of the attempt left, or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)   # of Popen objects, whenever they are freed below
        try:
            with _silent():
                ray.init(**settings)
            return ""
        except Exception as error:                         # a timeout is a plain Exception
            reason = " ".join(str(error).split())[:500] or type(error).__name__
        ray.shutdown()
        _end_children(settings.get("_temp_dir"))
        gc.collect()
    return reason


def _end_children(folder: str | None) -> None:
    """Kill the processes of a failed start, which Ray leaves running."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):            # already ended
            if folder and folder in " ".join(child.cmdline()):
                child.kill()


def _restore_handler(handler: Any) -> None:
    with contextlib.suppress(ValueError):                  # not in the main thread
        signal.signal(signal.SIGTERM, handler)


def _paths() -> dict[str, str]:
    """Environment that lets workers import from this process's ``sys.path``, besides installed packages."""
    installed = (sys.prefix, sys.base_prefix)
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path and not path.startswith(installed))}


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes of a session; on exit also restore those that Ray sets."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name in values or name.startswith("RAY_")]:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence Ray's warnings about its settings on stderr; errors are raised."""
    logger = logging.getLogger("ray")
    names = [name for name in logging.root.manager.loggerDict if name.startswith("ray.")]
    loggers = [logger, *map(logging.getLogger, names)]
    levels = [each.level for each in loggers]
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)                                    # Ray's C++ core writes there as well
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    root = Path(tempfile.gettempdir())
    if len(str(root)) + len(PREFIX) > 107 - SOCKET_ROOM:
        root = Path("/tmp")
    _remove_orphans(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(root: Path) -> None:
    """Remove session folders of killed processes."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name.removeprefix(PREFIX).split("-")[0])
            if folder.stat().st_uid == os.getuid() and not psutil.pid_exists(pid):
                shutil.rmtree(folder, ignore_errors=True)
