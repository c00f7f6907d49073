"""Independent calls, several at a time, each in a process of its own: Ray tasks in a session for them alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from fedsim.backends.ray.session import session
from fedsim.errors import RunError

T = TypeVar("T")
R = TypeVar("R")

TICK = 0.5
"""Seconds between calls of ``tick``."""
GRACE = 60.0
"""Seconds that interrupted calls have to end."""


def map_unordered(
    fn: Callable[[T], R],
    items: Sequence[T],
    *,
    jobs: int,
    cpus: int,
    gpus: float = 0,
    tick: Callable[[], None] = lambda: None,
) -> Generator[tuple[T, R | RunError], None, None]:
    """Each item with what ``fn`` made of it, in the order in which they end.

    A process that dies is replaced once, and ``fn`` is called again; when that dies too the result is a ``RunError``.
    Ctrl-C raises KeyboardInterrupt in all calls, waits for them, and is passed on; so does closing the generator.

    Args:
        fn: a function that can be imported.
        items: its arguments.
        jobs: calls at a time.
        cpus: for each call.
        gpus: share of a GPU for each call.
        tick: called now and then while waiting.
    """
    with session(cpus=jobs * cpus) as ray:
        task: Any = ray.remote(fn).options(num_cpus=cpus, num_gpus=gpus, max_retries=1)
        running = {task.remote(item): item for item in items}
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=1, timeout=TICK)
                tick()
                for call in done:
                    item = running.pop(call)
                    try:
                        yield item, ray.get(call)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                        yield item, RunError("its process died twice: killed, or out of memory")
        except (KeyboardInterrupt, GeneratorExit):         # here, or where the results are read
            for call in running:
                ray.cancel(call, force=False)
            ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            raise
