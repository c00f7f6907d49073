"""Processes that are started, watched and ended with everything that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedsim.errors import DeployError

END_SECONDS = 8.0
"""How long a process may take to end politely."""
TAIL_LINES = 15
LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: SIGTERM when the parent dies, even by SIGKILL
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the program, after asking Linux to end it with its parent."""


class Process:
    """A process in a group of its own, with its output in a file. It is told to end when this one dies.

    Args:
        name: for messages.
        command: program and arguments.
        environment: all of it.
        log: where its output goes.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.command, self.environment, self.log = name, list(command), dict(environment), log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is added to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *self.command], env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.log.parent,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return None if self._process is None else self._process.poll()

    def check(self) -> None:
        """Raise DeployError with the end of its log when it has ended."""
        if self._process is not None and self.code is not None:
            raise DeployError(f"{self.name} ended with exit code {self.code}:\n{self.tail()}\nAll of it: {self.log}")

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something that the process brings about.

        Raises:
            DeployError: it ended, or took longer.
        """
        end = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise DeployError(f"{self.name} was not {what} within {seconds:g} s:\n{self.tail()}\nAll: {self.log}")
            time.sleep(0.1)

    def tail(self) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def kill(self) -> None:
        """End it at once, and all that it started."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def ask_to_end(self) -> None:
        """Tell the process, not those that it started, to end."""
        if self._process is not None and self.code is None:
            self._process.terminate()

    def stop(self) -> None:
        """End it, politely at first, and all that it started."""
        self.ask_to_end()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            end = time.monotonic() + END_SECONDS
            while group(self.pid) and time.monotonic() < end:     # its children notice that it is gone
                self._signal(signal.SIGTERM)
                time.sleep(0.1)
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def stop_all(processes: Sequence[Process]) -> None:
    """End several, all at the same time."""
    for process in processes:
        process.ask_to_end()
    for process in processes:
        process.stop()


def group(leader: int) -> list[int]:
    """Processes of a group that live, zombies not among them."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == leader and state not in "ZX":
                members.append(int(stat.parent.name))
    return members
