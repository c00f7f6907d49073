"""Processes end with everything that they started, whoever dies; ports say who holds them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedsim.backends.flower.deploy import ports
from fedsim.backends.flower.deploy.processes import Process, _lives, end_leftovers, living, stop_all
from fedsim.errors import ConfigError, DeployError
from tests.processes import wait_until

pytestmark = pytest.mark.process

FAMILY = """
import subprocess, sys, time
code = "import time; print('child', flush=True); time.sleep(900)"
child = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
print("parent", flush=True)
time.sleep(900)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(900)
"""


def python(folder: Path, code: str, name: str = "it") -> Process:
    return Process(name, [sys.executable, "-S", "-c", code], dict(os.environ), folder / f"{name}.log")


@pytest.mark.parametrize("end", [Process.stop, Process.kill])
def test_children_end_with_their_parent(tmp_path: Path, end: Callable[[Process], None]) -> None:
    process = python(tmp_path, FAMILY)
    process.start()
    process.wait_until(lambda: "child" in process.tail(), 240, "running")
    assert len(process.living()) == 2
    end(process)
    assert not process.living()
    assert process.code is not None


def test_who_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.backends.flower.deploy.processes.END_SECONDS", 0.3)
    process = python(tmp_path, STUBBORN)
    process.start()
    process.wait_until(lambda: "ready" in process.tail(), 240, "running")
    process.stop()
    assert process.code == -signal.SIGKILL


def test_children_outlive_a_killed_parent_but_not_its_end(tmp_path: Path) -> None:
    process = python(tmp_path, FAMILY)
    process.start()
    process.wait_until(lambda: "child" in process.tail(), 240, "running")
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process.code is not None)
    (child,) = process.living()
    assert child.pid != process.pid
    process.stop()
    assert not process.living()


def test_processes_end_when_their_starter_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves it no time to say so; the system does. What outlives even that is ended by the next start."""
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
from pathlib import Path
from fedsim.backends.flower.deploy.processes import Process
process = Process("it", [sys.executable, "-S", "-c", {FAMILY!r}], dict(os.environ), Path("it.log"))
process.start()
process.wait_until(lambda: "child" in process.tail(), 240, "running")
print(process.pid, flush=True)
time.sleep(900)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as starter:
        try:
            assert starter.stdout is not None
            leader, mark = int(starter.stdout.readline()), f"{starter.pid} {tmp_path / 'it.log'}"
            assert len(living(mark)) == 2
            with pytest.raises(DeployError, match=rf"in use by process {starter.pid}; wait for it, or stop it"):
                end_leftovers(tmp_path)
        finally:
            starter.kill()
    wait_until(lambda: leader not in [process.pid for process in living(mark)])
    assert len(living(mark)) == 1
    end_leftovers(tmp_path)
    assert not living(mark)


def test_a_starter_is_older_than_what_it_has_started() -> None:
    """The number of one that has ended may be given to another process."""
    created = psutil.Process().create_time()
    assert _lives(os.getpid(), created + 1) and not _lives(os.getpid(), created - 2)
    ended = subprocess.Popen(["true"])
    wait_until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
    assert not _lives(ended.pid, created + 1000)
    ended.wait()
    assert not _lives(ended.pid, created + 1000)


def test_an_early_end_is_told_with_the_log(tmp_path: Path) -> None:
    process = python(tmp_path, "print('no such port'); raise SystemExit(3)", "the server")
    process.start()
    with pytest.raises(DeployError, match=r"(?s)the server ended with exit code 3:.*no such port.*the server\.log"):
        process.wait_until(lambda: False, 240, "healthy")
    slow = python(tmp_path, "import time; time.sleep(900)", "the node")
    slow.start()
    with pytest.raises(DeployError, match=r"the node was not healthy within 0.2 s"):
        slow.wait_until(lambda: False, 0.2, "healthy")
    stop_all([slow, process])
    assert slow.code is not None


def test_a_port_in_use_is_told_with_its_holder() -> None:
    (port,) = ports.free(1)
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        held.listen()
        with pytest.raises(DeployError, match=rf"port {port} is in use by .*\(pid {os.getpid()}\).*--port {port + 1}"):
            ports.check(port)
    assert ports.check(port) == port
    with pytest.raises(ConfigError, match="--port is 70000; expected 1 to 65535"):
        ports.check(70000)


def test_free_ports_are_none_that_the_system_gives_away() -> None:
    found = [ports.check(0), *ports.free(200), *ports.free(200)]
    assert len(set(found)) == 401
    assert all(ports.FIRST <= port <= ports.LAST for port in found)
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        assert given.getsockname()[1] > ports.LAST
