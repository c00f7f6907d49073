"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from fedsim.data import Dataset, MissingDataError, load

signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs, and so their children, ignore it

# Whether a change passes must not hang on how busy the machine is, nor on which examples were drawn this time.
settings.register_profile("fedsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedsim")


LONGEST = [
    Path(__file__).parent / name
    for name in (
        "test_readme.py", "deploy/test_deploy.py", "deploy/test_federation.py", "backends/ray/test_command.py",
        "test_sweep_jobs.py",
    )
]  # fmt: skip
"""They start processes and take minutes: the last of them would keep one worker busy while the other has nothing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first, then as they were."""
    items.sort(key=lambda item: LONGEST.index(item.path) if item.path in LONGEST else len(LONGEST))


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
