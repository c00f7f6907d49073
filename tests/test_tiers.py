"""The guard of ``tests/conftest.py``: what starts a process has a marker, for `make test-fast` to leave it out."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: os.system("true"),
        multiprocessing.get_context("spawn").Process(target=print).start,
        multiprocessing.get_context("fork").Process(target=print).start,
    ],
    ids=["subprocess", "system", "spawn", "fork"],
)
def test_an_unmarked_test_starts_no_process(start: Callable[[], Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match="mark it as process, ray or flower"):
        start()


@pytest.mark.process
def test_a_marked_one_does() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_where_a_run_was_made_may_be_asked() -> None:
    subprocess.run(["uname"], check=True, capture_output=True)
