"""Ports on this machine: free ones, and who holds one that is not."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from fedsim.errors import ConfigError, DeployError

LISTENING = "0A"
FIRST = 20_000
"""Below are ports of well-known services, and those of Ray's workers."""
_given: set[int] = set()
"""Ports that this process has handed out: they may not be bound yet."""


def check(port: int, option: str = "--port") -> int:
    """The port, or any free one for 0.

    Raises:
        ConfigError: it is no port.
        DeployError: another process listens on it; says which, where the system tells.
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
                f" with {option} {port + 1}, or {option} 0 for any that is free"
            ) from error
    return port


def within(port: int, option: str = "--port") -> None:
    """Raise ConfigError unless it can be the number of a port, or 0."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"{option} is {port}; expected 1 to 65535, or 0 for any that is free")


def free(count: int) -> list[int]:
    """Different ports that are free now; if there are enough, such that the system gives to nobody who asks for any."""
    low, high = _ephemeral()
    ports = list(range(FIRST, 65_536))
    random.SystemRandom().shuffle(ports)
    found: list[int] = []
    for port in sorted(ports, key=lambda port: low <= port <= high):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind(("127.0.0.1", port))
                found.append(port)
                _given.add(port)
        if len(found) == count:
            return found
    raise DeployError(f"{len(found)} ports of {count} are free among {FIRST} to 65535")


def _ephemeral() -> tuple[int, int]:
    """First and last port of those that the system gives to whoever asks for any."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return 49_152, 65_535                              # as the standard says
    return int(low), int(high)


def holder(port: int) -> str:
    """Process that listens on a port, as "python (pid 12)"; empty where the system does not tell."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):                 # gone meanwhile, or somebody else's
            if any(_target(fd) in sockets for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:                                        # closed meanwhile
        return ""


def _inodes(port: int) -> list[str]:
    """Sockets that listen on a port, by the number of their inode."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            found += [row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port]
    return found
