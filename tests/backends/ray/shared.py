"""Shared by the tests: a Ray session with two workers, as to start one takes long; a run in this process alone."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from fedsim import Experiment, run
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.session import session
from fedsim.experiment.execution import Ray

STORE_BYTES = 200_000_000


@cache
def workers() -> Workers:
    """They stay until the process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    ray = stack.enter_context(session(cpus=4, gpus=0, object_store_bytes=STORE_BYTES))
    return Workers(ray, Ray(actors=2))


def measured(path: Path) -> bytes:
    """Measurements of a run."""
    return (path / "seed-0" / "metrics.jsonl").read_bytes()


def measured_here(experiment: Experiment, path: Path) -> bytes:
    """The measurements of an experiment in this process."""
    return measured(run(experiment, output=path, progress=False).path)
