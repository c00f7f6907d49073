"""Independent function calls in parallel processes, as Ray tasks in a private session."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from functools import wraps
from typing import Any, TypeVar

from fedsim.backends.ray.session import session
from fedsim.errors import RunError

T = TypeVar("T")
R = TypeVar("R")

TICK = 0.5
"""Seconds between calls of ``tick``."""
GRACE = 60.0
"""Seconds for interrupted calls to end."""


def map_unordered(
    fn: Callable[[T], R],
    items: Sequence[T],
    *,
    jobs: int,
    cpus: int,
    gpus: float = 0,
    tick: Callable[[], None] = lambda: None,
) -> Generator[tuple[T, R | RunError], None, None]:
    """Yield each item with its result ``fn(item)``, in order of completion.

    A call whose process dies is retried once; if that one dies too, its result is a ``RunError``. Ctrl-C raises
    KeyboardInterrupt in all calls, waits for them, and propagates; so does closing the generator.

    Args:
        fn: an importable function.
        items: its arguments.
        jobs: parallel calls.
        cpus: for each call.
        gpus: share of a GPU for each call.
        tick: called periodically while waiting.
    """
    with session(cpus=jobs * cpus) as ray:
        # max_calls 0: a process that has a GPU too goes on with the next call, with what it has imported and loaded
        task: Any = ray.remote(max_calls=0, num_cpus=cpus, num_gpus=gpus, max_retries=1)(_interruptible(fn))
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
        except (KeyboardInterrupt, GeneratorExit):         # raised here, or in the consumer
            for call in running:
                ray.cancel(call, force=False)
            ray.wait(list(running), num_returns=len(running), timeout=GRACE)
            raise


def _interruptible(fn: Callable[[T], R]) -> Callable[[T], R]:
    """The function where it hears SIGINT, by which Ray cancels a call.

    A command in the background of a script ignores that signal, and its processes inherit it.
    """

    @wraps(fn)
    def call(item: T) -> R:
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return fn(item)

    return call
