"""Fixtures that several test folders share."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from fedsim.data import Dataset, MissingDataError, load

signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs, and so their children, ignore it

# Whether a change passes must not hang on how busy the machine is, nor on which examples were drawn this time.
settings.register_profile("fedsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedsim")


ORDER = ("flower", "ray", "process", "slow")
STARTING = {"process", "ray", "flower"}
"""Markers of tests that may start processes."""
EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
HARMLESS = {"git", "uname"}
"""Programs that say where and on what a run was made, or which processor this is."""
current: pytest.Item | None = None


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail a test that starts a process and has no marker for it."""
    if event not in EVENTS or current is None or STARTING & {mark.name for mark in current.iter_markers()}:
        return
    program = arguments[1] if event == "subprocess.Popen" else arguments[:1]
    program = program if isinstance(program, str) else str((*program, "")[0])
    if Path(program).name not in HARMLESS:
        kinds = "process, ray or flower"
        pytest.fail(f"{current.nodeid} starts a process ({event}: {program}): mark it as {kinds}")


sys.addaudithook(guard)
spawn = multiprocessing.util.spawnv_passfds


def guarded_spawn(path: Any, *rest: Any) -> int:
    """Python raises no event for what multiprocessing starts."""
    guard("os.posix_spawn", (os.fsdecode(path),))
    return spawn(path, *rest)


multiprocessing.util.spawnv_passfds = guarded_spawn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let the guard know which test runs, with its fixtures."""
    global current
    current = item
    try:
        return (yield)
    finally:
        current = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whole folders and cases on Ray; tests that wait for processes come first, small ones fill up the workers."""
    for item in items:
        if item.path.parent.name == "experiments":
            item.add_marker("slow")
            item.add_marker("process")
        if getattr(item, "callspec", None) and item.callspec.params.get("backend") == "ray":
            item.add_marker("ray")
    items.sort(key=lambda item: next((k for k, mark in enumerate(ORDER) if item.get_closest_marker(mark)), len(ORDER)))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Commands add the working directory to the search path, and tests change both: none of it meets the next test, nor
    do threads.
    """
    path, folder, threads = [*sys.path], Path.cwd(), torch.get_num_threads()
    yield
    sys.path[:] = path
    os.chdir(folder)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Callable[..., Dataset]:
    """`load` for data sets that need files: skips, by name, where FEDSIM_DATA does not lead to them."""

    def get(name: str, **options: Any) -> Dataset:
        if not os.environ.get("FEDSIM_DATA"):
            pytest.skip(f"data set {name} needs its files: set FEDSIM_DATA to the folder that holds them")
        try:
            return load(name, **options)
        except MissingDataError as error:
            pytest.skip(f"data set {name} is not in FEDSIM_DATA: {str(error).splitlines()[0]}")

    return get
