"""Shared by the tests: a Ray session with two workers, as to start one takes long; a run in this process alone."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np

from fedsim import Experiment, read_metrics, run
from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.ray_host import RayHost
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


def assert_same_in_actors(experiment: Experiment, folder: Path) -> None:
    """A run on Ray measures what a run in this process does."""
    here = run(experiment, output=folder / "here", progress=False)
    host = RayHost(Ray(), progress=False, workers=workers())
    elsewhere = experiment.with_execution(backend="ray", block_size=0)
    there = run(elsewhere, output=folder / "there", progress=False, host=host)
    a, b = (read_metrics(made.seed_path(0) / "metrics.jsonl") for made in (here, there))
    np.testing.assert_allclose(a.value, b.value, rtol=1e-12)
