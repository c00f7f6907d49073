"""Clients, or blocks of them, on threads of this process: PyTorch releases Python's lock within its operations.

Every thread has a module of its own, and PyTorch one thread in each, so that neither the number of threads nor the
order in which clients finish can be seen in a result: results are taken in the order of the clients.
"""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch

from fedsim.checks import whole
from fedsim.engine.federation import Federation
from fedsim.engine.kernels import Kernels
from fedsim.engine.machine import torch_threads
from fedsim.engine.model import Model
from fedsim.engine.unpicklable import refused

J = TypeVar("J")
R = TypeVar("R")

COPIES: WeakKeyDictionary[Model, list[Model]] = WeakKeyDictionary()
"""Copies of a model, one for each thread or branch that ran it besides the first, which has the model itself."""

_STOPPED = threading.local()


class Stopped(BaseException):                              # no error: a user's code should not catch it
    """Another client failed, or the run was interrupted; nobody waits for this one's result."""


def check_threads(count: int) -> None:
    """Raise ConfigError unless ``count`` is a number of threads, or 0 for none."""
    whole("client_threads", count, 0, "; 0 is one client or block at a time")


def refuse_stopped() -> None:
    """Raise Stopped in a thread that is to end; called between the steps of a client."""
    event = getattr(_STOPPED, "event", None)
    if event is not None and event.is_set():
        raise Stopped


def in_order(
    federation: Federation, jobs: Sequence[J], run: Callable[[Federation, J], R], threads: int, kernels: Kernels
) -> Generator[R, None, None]:
    """Yield ``run(federation, job)`` of every job, clients or blocks, in their order; in a thread, the federation has a
    model of its own. See `on_copies`.
    """

    def one(model: Model, job: J) -> R:
        return run(federation if model is federation.model else replace(federation, model=model), job)

    yield from on_copies(federation.model, jobs, one, threads, kernels)


def on_copies(
    model: Model, jobs: Sequence[J], run: Callable[[Model, J], R], threads: int, kernels: Kernels
) -> Generator[R, None, None]:
    """Yield ``run(model, job)`` of every job, in their order.

    Args:
        model: what ``run`` receives, or, in all threads but one, a copy.
        jobs: what is to be run.
        run: runs one; called without gradients.
        threads: jobs at the same time, with one PyTorch thread each; 0 runs one after the other, with PyTorch's.
        kernels: what computes them.
    """
    if threads <= 1:
        with torch_threads(1 if threads else None), kernels.used_by([model]):
            for job in jobs:
                yield run(model, job)
        return
    models, stop = copies(model, min(threads, len(jobs))), threading.Event()
    free = deque(models)

    def one(job: J) -> R:
        _STOPPED.event, mine = stop, free.pop()
        try:
            refuse_stopped()
            with torch.no_grad():                          # of each thread its own, as everything of this kind
                return run(mine, job)
        finally:
            free.append(mine)

    waiting: deque[Future[R]] = deque()
    with torch_threads(1), kernels.used_by(models):
        try:
            for job in jobs:
                waiting.append(_pool(threads).submit(one, job))
                if len(waiting) > 2 * threads:             # results wait for their turn, in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:                                           # also after an error, a client's or here, or an interrupt
            stop.set()
            wait([job for job in waiting if not job.cancel()])


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: in a new one, the first step of a convolution takes twice as long."""
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)      # a forked process has none of the threads


def copies(model: Model, count: int) -> list[Model]:
    """A model and copies of it, the same whenever as many are asked for."""
    have = COPIES.setdefault(model, [])
    try:
        while len(have) < count - 1:
            have.append(copy.deepcopy(model))
    except Exception as error:
        parts = {"the model": model.module, "the loss": model.loss}
        raise refused(error, "be copied, one for each of client_threads", parts, copy.deepcopy) from error
    return [model, *have[: count - 1]]
