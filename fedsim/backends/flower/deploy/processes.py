"""Subprocesses that are ended with all their descendants."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from fedsim.errors import DeployError
from fedsim.record.files import private, private_folder

END_SECONDS = 8.0
"""Time for a process to end after SIGTERM, before SIGKILL."""
CLOCK_SECONDS = 1.0
"""Tolerance of process creation times."""
TAIL_LINES = 15
MARK = "FEDSIM_PROCESS"
"""Environment variable that holds a process's mark."""
LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: SIGTERM when the parent dies, even by SIGKILL
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Replace itself by the program, tied to its parent's life on Linux; elsewhere the next start ends leftovers."""


class Process:
    """A process with its output in a file, terminated when this process dies.

    Its descendants inherit a mark in the environment, by which they are found to be ended: Flower's processes start
    others in their own sessions, which outlive their parent.

    Args:
        name: for messages.
        command: program and arguments.
        environment: complete environment.
        log: file for its output.
        umask: of the files that it writes; -1 for that of this process.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, umask: int = -1
    ) -> None:
        self.name, self.command, self.environment, self.log = name, list(command), dict(environment), log
        self.umask = umask
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def mark(self) -> str:
        """Mark in its environment: pid of this process, and path of its log."""
        return f"{os.getpid()} {self.log.absolute()}"

    def start(self) -> None:
        """Start it; append its output to the log."""
        private_folder(self.log.parent)
        with open(self.log, "ab", opener=private) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *self.command],
                env={**self.environment, MARK: self.mark},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.log.parent,
                start_new_session=True, umask=self.umask,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id, and id of its group."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    def check(self) -> None:
        """Raise DeployError with the end of its log if it has ended."""
        if self._process is not None and self.code is not None:
            raise DeployError(f"{self.name} ended with exit code {self.code}:\n{self.tail()}\nLog: {self.log}")

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until ``ready()`` is true.

        Raises:
            DeployError: the process ended, or ``seconds`` have passed.
        """
        end = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise DeployError(f"{self.name} was not {what} within {seconds:g} s:\n{self.tail()}\nLog: {self.log}")
            time.sleep(0.1)

    def tail(self) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def living(self) -> list[psutil.Process]:
        """Living processes among it and its descendants."""
        return living(self.mark)

    def kill(self) -> None:
        """Kill it and its descendants."""
        end(self.mark)
        if self._process is not None:
            self._process.wait()

    def ask_to_end(self) -> None:
        """Send SIGTERM to the process, without its descendants."""
        if self._process is not None and self.code is None:
            self._process.terminate()

    def stop(self) -> None:
        """Terminate it and its descendants, and kill those that remain."""
        self.ask_to_end()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            latest = time.monotonic() + END_SECONDS
            while (left := self.living()) and time.monotonic() < latest:   # children notice its end
                _signal(left, signal.SIGTERM)
                time.sleep(0.1)
            self.kill()


def stop_all(processes: Sequence[Process]) -> None:
    """Stop several processes in parallel."""
    for process in processes:
        process.ask_to_end()
    for process in processes:
        process.stop()


def marked() -> dict[psutil.Process, str]:
    """All living descendants of any ``Process`` on this machine, with their marks; no zombies."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):            # ended, or another user's; a zombie has no environment
            if mark := process.environ().get(MARK):
                found[process] = mark
    return found


def living(mark: str) -> list[psutil.Process]:
    """Living processes with a mark."""
    return [process for process, found in marked().items() if found == mark]


def end(mark: str) -> None:
    """Kill the processes with a mark, repeatedly, as they may start others meanwhile."""
    while left := living(mark):
        _signal(left, signal.SIGKILL)
        time.sleep(0.02)


def end_leftovers(folder: Path) -> None:
    """Kill leftover processes with logs in ``folder`` whose starter was killed.

    Raises:
        DeployError: the starter is alive.
    """
    oldest: dict[str, float] = {}
    for process, mark in marked().items():
        oldest[mark] = min(process.create_time(), oldest.get(mark, math.inf))
    for mark, created in oldest.items():
        starter, _, log = mark.partition(" ")
        if not Path(log).is_relative_to(folder):
            continue
        if int(starter) != os.getpid() and _lives(int(starter), created):
            raise DeployError(f"the federation in {folder} is in use by process {starter}; wait for it, or stop it")
        end(mark)


def _lives(starter: int, created: float) -> bool:
    """Check that the starter of a process created at ``created`` is alive; a younger process has reused its pid."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(starter)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < created + CLOCK_SECONDS
    return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):    # psutil also checks that the pid was not reused
            process.send_signal(number)
