"""TCP ports on this machine: find free ones, and the process that listens on a port."""

from __future__ import annotations

import contextlib
import random
import socket

import psutil

from fedsim.errors import ConfigError, DeployError

FIRST, LAST = 20_000, 32_767
"""Preferred range: above well-known services and the ports of Ray's workers, below the ephemeral range of Linux, the
lowest of all systems.
"""
_given: set[int] = set()
"""Ports returned to callers, which may not have bound them yet."""


def check(port: int, option: str = "--port") -> int:
    """Return the port if it is free, or any free port for 0.

    Raises:
        ConfigError: it is not a port number.
        DeployError: another process listens on it; names the process if the system reports it.
    """
    within(port, option)
    if port == 0:
        return free(1)[0]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            by = holder(port)
            raise DeployError(
                f"port {port} is in use{f' by {by}' if by else ''} ({error.strerror}); stop that, or choose another"
                f" with {option} {port + 1}, or {option} 0 for any free port"
            ) from error
    return port


def within(port: int, option: str = "--port") -> None:
    """Raise ConfigError unless ``port`` is a port number or 0."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"{option} is {port}; expected 1 to 65535, or 0 for any free port")


def free(count: int) -> list[int]:
    """Find distinct free ports, outside the ephemeral range while there are enough."""
    found: list[int] = []
    for port in [*_shuffled(FIRST, LAST), *_shuffled(LAST + 1, 65_535)]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind(("127.0.0.1", port))
                found.append(port)
                _given.add(port)
        if len(found) == count:
            return found
    raise DeployError(f"{len(found)} ports of {count} are free among {FIRST} to 65535")


def _shuffled(first: int, last: int) -> list[int]:
    return random.SystemRandom().sample(range(first, last + 1), last + 1 - first)


def holder(port: int) -> str:
    """Process that listens on a port, as "python (pid 12)"; empty if the system does not report it."""
    with contextlib.suppress(psutil.Error):                # ended meanwhile, or another user's
        for found in psutil.net_connections("tcp"):
            if found.pid and found.laddr and found.laddr.port == port and found.status == psutil.CONN_LISTEN:
                return f"{psutil.Process(found.pid).name()} (pid {found.pid})"
    return ""
