"""One Ray session with two workers for all tests of a process: to start it takes longer than most of them."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache

from fedsim.backends.ray.session import session
from fedsim.backends.ray.settings import Ray
from fedsim.backends.ray.workers import Workers

STORE_BYTES = 200_000_000


@cache
def workers() -> Workers:
    """They stay until the process ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    ray = stack.enter_context(session(cpus=4, gpus=0, object_store_bytes=STORE_BYTES))
    return Workers(ray, Ray(actors=2))
