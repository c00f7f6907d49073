"""Automatic choice of the backend: a short trial of the first round's work, cached for later runs on this machine.

The choice affects rounding only: a block's matrix products may sum in another order. The run records it and a resumed
run keeps it; the cache lets a repeated run choose the same backend, so that results are reproduced bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from fedsim.algorithm import Algorithm, has_server
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.examine import snapshot
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.loop import Loop
from fedsim.errors import BlockError, explained
from fedsim.record.files import lock, write_atomic
from fedsim.record.state import check
from fedsim.tree import written

CANDIDATES = (5, 10, 25, 50, 100)
"""Block sizes to try."""
TRIAL_STEPS = 4
"""Local steps of a trial: enough to measure the cost of a step."""
MARGIN = 0.9
"""Blocks must take less than this share of the loop's time to be chosen."""
LARGE = 1_000_000
"""Convolutional models with more parameters than this run in the loop on a CPU: one client already saturates it."""


def choose(
    federation: Federation,
    algorithm: Algorithm[Any],
    ids: np.ndarray,
    *,
    blocks_only: bool = False,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the fastest backend for this federation: {"backend": "loop" or "blocks", "block_size": ..., details}.

    Args:
        federation: not modified; trials run on a copy.
        algorithm: the algorithm to run.
        ids: cohort of the first round.
        blocks_only: exclude the loop.
        cache: file of earlier measurements; in the user's cache directory by default.
        say: prints a message.

    Raises:
        BlockError: with ``blocks_only``, code that runs in the loop alone.
    """
    model = federation.model
    if not blocks_only and model.convolutional and model.device.type == "cpu" and model.d > LARGE:
        return {"backend": "loop", "reason": f"convolutions of {model.d:,} parameters on a CPU"}
    cache = cache or Path(platformdirs.user_cache_dir("fedsim")) / "backends.json"
    key = _key(federation, algorithm, len(ids))
    seconds = _read(cache).get(key)
    if seconds is None:
        try:
            seconds = _keep(cache, key, _measure(federation, algorithm, ids))
        except BlockError as error:                        # not cached: its cause may be mended
            if blocks_only:
                raise
            say(f"{error.reason}; clients run one at a time")
            return {"backend": "loop", "reason": error.reason}
    names = [name for name in seconds if name != "loop" or not blocks_only]
    fastest = min(names, key=lambda name: seconds[name] * (MARGIN if name == "loop" else 1))
    if fastest == "loop":
        return {"backend": "loop", "trial_seconds": seconds}
    return {"backend": "blocks", "block_size": int(fastest), "trial_seconds": seconds}


def _measure(federation: Federation, algorithm: Algorithm[Any], ids: np.ndarray) -> dict[str, float]:
    """Seconds of a trial round by candidate ("loop" or a block size): the better of two rounds, after one to warm up.
    Blocks that exceed the GPU's memory are omitted.

    Raises:
        BlockError: the model or the algorithm runs in the loop alone.
    """
    steps = min(TRIAL_STEPS, int(federation.work.counts(federation.shards.sizes[ids]).max()))
    seconds: dict[str, float] = {}
    sizes = [size for size in CANDIDATES if size < len(ids)] + [len(ids)]
    candidates: dict[str, Backend] = {"loop": Loop()}
    candidates |= {str(size): Blocks(size) for size in sizes if size <= CANDIDATES[-1]}
    before = snapshot(federation.model)
    try:
        for name, backend in candidates.items():
            trial = replace(federation, work=replace(federation.work, steps=steps), backend=backend)
            seconds[name] = float(f"{min(_times(trial, algorithm, ids)[1:]):.6f}")
    except torch.OutOfMemoryError:                         # larger blocks will not fit either
        if not seconds:
            raise
        torch.cuda.empty_cache()
    finally:
        before.restore()                                   # what a module holds of a block means nothing outside it
    return seconds


def _times(trial: Federation, algorithm: Algorithm[Any], ids: np.ndarray) -> list[float]:
    """Seconds of each of three rounds."""
    x, times, name = trial.model.shared(), list[float](), type(algorithm).__name__
    with explained(f"{name}.init"):
        state = algorithm.init(x, cohort(trial, 0, ids))
    check(f"{name}.init", state, server=has_server(algorithm))
    for round in (1, 2, 3):
        start = time.perf_counter()
        with explained(f"{name}.round in round {round}"):
            algorithm.round(state, cohort(trial, round, ids))
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - start)
    return times


def _key(federation: Federation, algorithm: Algorithm[Any], cohort: int) -> str:
    """Cache key: digest of everything that the choice depends on."""
    model, work, shards = federation.model, federation.work, federation.shards
    where = [platform.node(), platform.processor(), torch.__version__, torch.get_num_threads(), str(model.device)]
    parts = [
        [type(module).__name__ for module in model.module.modules()],
        getattr(model.loss, "__qualname__", type(model.loss).__name__),
        model.shapes,
        str(model.dtype),
        written(shards.span(0, 1).x),
        np.percentile(shards.sizes, [0, 50, 100]).tolist(),
        work.batch_size,
        min(TRIAL_STEPS, int(work.counts(shards.sizes).max())),
        cohort,
        _kind(algorithm),
        _kind(federation.topology),
        where,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _kind(value: Any) -> Any:
    """Structure of a component without its floating-point settings: step sizes do not affect the time of a step."""
    if isinstance(value, float):
        return "a number"
    if is_dataclass(value):
        return type(value).__name__, [_kind(getattr(value, field.name)) for field in fields(value)]
    return value if isinstance(value, int | str | None) else type(value).__name__


def _read(cache: Path) -> dict[str, dict[str, float]]:
    try:
        return dict(json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        return {}  # missing or corrupt: measure again


def _keep(cache: Path, key: str, seconds: dict[str, float]) -> dict[str, float]:
    """Store a measurement and return it, or return that of a process that was first, so that both choose the same."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with lock(cache.parent):
            known = _read(cache)
            seconds = known.setdefault(key, seconds)
            write_atomic(cache, json.dumps(known, indent=1))
    except OSError:
        pass                                               # a read-only home: each run measures once for all seeds
    return seconds
