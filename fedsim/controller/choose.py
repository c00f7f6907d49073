"""Automatic choice of the backend: a short trial of the first round's work, cached for later runs on this machine.

The choice affects rounding only: a block's matrix products may sum in another order. A run records its choice and keeps
it when it is resumed; the cache lets a repeated run choose the same, so that results are reproduced bit for bit.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from fedsim.algorithm import Algorithm
from fedsim.controller.candidates import Candidate, candidates, fastest_of
from fedsim.controller.trials import Trials
from fedsim.engine.federation import Federation
from fedsim.engine.kernels import variations
from fedsim.errors import BlockError
from fedsim.record.files import lock, write_atomic
from fedsim.tree import written


def choose(
    federation: Federation,
    algorithm: Algorithm[Any],
    ids: np.ndarray,
    *,
    rounds: int = 1,
    blocks_only: bool = False,
    threads: int | None = None,
    kernels: bool = True,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the fastest backend for this federation: {"backend": "loop", "graphed" or "blocks", details}.

    Args:
        federation: not modified; trials run on a copy.
        algorithm: the algorithm to run.
        ids: cohort of the first round.
        rounds: rounds of the run; long ones are worth longer trials.
        blocks_only: exclude the loop.
        threads: clients or blocks at the same time, 0 for one; by default 0 and PyTorch's number are tried, on a GPU
            several numbers of streams.
        kernels: try other kernels than the reference's, too.
        cache: file of earlier measurements; in the user's cache directory by default.
        say: prints a message.

    Raises:
        BlockError: with ``blocks_only``, code that runs in the loop alone.
    """
    tried = candidates(federation, len(ids), blocks_only, threads)
    varied = variations(federation.model) if kernels else []
    cache = cache or Path(platformdirs.user_cache_dir("fedsim")) / "backends.json"
    key = _key(federation, algorithm, len(ids), tried, varied)
    seconds, reason, dropped = _read(cache).get(key), None, dict[str, str]()
    if seconds is None:
        try:
            seconds = Trials(federation, algorithm, ids, rounds, dropped).run(tried, varied)
            if not dropped:                                # nor are these cached
                seconds = _keep(cache, key, seconds)
        except BlockError as error:                        # not cached: its cause may be mended
            if blocks_only:
                raise
            say(f"{error.reason}; clients run one at a time")
            one_by_one, reason = [candidate for candidate in tried if not candidate.size], error.reason
            seconds = Trials(federation, algorithm, ids, rounds, dropped).run(one_by_one, varied)
        if federation.model.device.type == "cuda":
            gc.collect()                                   # graphs and the clients that they hold are cycles
            torch.cuda.empty_cache()
    for name, why in dropped.items():
        say(f"{name} was not measured: {why}")
    remarks = {"reason": reason, "dropped": dropped}
    chosen = fastest_of(seconds, tried).recorded
    return {**chosen, **{name: told for name, told in remarks.items() if told}, "trial_seconds": seconds}


def _key(
    federation: Federation, algorithm: Algorithm[Any], cohort: int, tried: Sequence[Candidate],
    varied: Sequence[dict[str, bool]] = (),
) -> str:  # fmt: skip
    """Cache key: digest of everything that the choice depends on."""
    model, work, shards = federation.model, federation.work, federation.shards
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    where = [platform.node(), platform.processor(), torch.__version__, torch.get_num_threads(), device]
    parts = [
        [type(module).__name__ for module in model.module.modules()],
        getattr(model.loss, "__qualname__", type(model.loss).__name__),
        model.shapes,
        str(model.dtype) if model.numerics.precision == "float32" else model.numerics.precision,
        written(shards.span(0, 1).x),
        np.percentile(shards.sizes, [0, 50, 100]).tolist(),
        work.batch_size,
        int(work.counts(shards.sizes).max()),
        cohort,
        [candidate.name for candidate in tried],
        varied,
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
