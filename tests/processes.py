"""Processes that tests start: found by what is in their environment or their command, and waited for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

LINGER = "ray::(DashboardAgent|RuntimeEnvAgent)"
"""Processes of Ray that leave a minute after their driver was killed."""


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Fail unless something happens in time; it may take long on a machine that is busy with other things."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def commands(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str]]:
    """Those of the processes that live, with their command lines."""
    for process in processes:
        with suppress(psutil.Error):                       # gone meanwhile, or another user's
            if command := " ".join(process.cmdline()):     # a zombie has none
                yield process, command


def wait_until_ended(folder: Path, *, besides: str = "nothing") -> None:
    """Wait for the processes with this folder in their environment, which those that they start inherit.

    One that exits loses its environment before the locks that it holds: all that were seen are waited for.
    """
    seen: dict[int, psutil.Process] = {}

    def ended() -> bool:
        for process in psutil.process_iter():
            with suppress(psutil.Error):                   # gone meanwhile, or another user's
                if any(str(folder) in value for value in process.environ().values()):
                    seen[process.pid] = process
        return not any(lives(process) for process in seen.values())

    def lives(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            there = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            return there and not re.match(besides, " ".join(process.cmdline()))
        return False

    wait_until(ended)


def running(*words: str) -> list[psutil.Process]:
    """Processes whose command has all of these words."""
    return [process for process, command in commands(psutil.process_iter()) if all(word in command for word in words)]


def children(parent: int, program: str) -> list[psutil.Process]:
    """Processes that a process has started, whose command names a program."""
    started = psutil.Process(parent).children()
    return [process for process, command in commands(started) if program in command]


def kill_tree(leader: int) -> None:
    """Kill a process and all that it has started, at once, as on a machine that loses its power."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
