"""Automatic choice of the backend: a short trial of the first round's work, cached for later runs on this machine.

The choice affects rounding only: a block's matrix products may sum in another order. The run records it and a resumed
run keeps it; the cache lets a repeated run choose the same backend, so that results are reproduced bit for bit.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch

from fedsim.algorithm import Algorithm, has_server
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.captured import Graphs, eager_in
from fedsim.engine.examine import snapshot
from fedsim.engine.federation import Backend, Federation
from fedsim.engine.graphed import Graphed
from fedsim.engine.kernels import KERNELS, REFERENCE, Kernels, fastest, variations
from fedsim.engine.loop import Loop
from fedsim.engine.machine import free_memory, out_of_memory, torch_threads
from fedsim.errors import BlockError, FedsimError, explained, in_one_line
from fedsim.record.files import lock, write_atomic
from fedsim.record.state import check
from fedsim.tree import written
from fedsim.types import Batch

SIZES = (1, 5, 10, 25, 50, 100)
"""Block sizes to try."""
LARGER, SMALL_BLOCK = (300, 1000), 2**22
"""Further ones of large cohorts, if one vector for each client takes no more than so many bytes."""
STREAMS = (1, 4, 2, 8)
"""Clients at the same time whose steps are graphs, on a GPU; the first are the likeliest."""
TRIAL_STEPS = 3
"""Least local steps of a trial, if a client makes that many: enough to measure the cost of a step."""
MARGIN, CLOSE = 0.95, 0.98
"""Others must take less than this share of the plain loop's time, and each other kernel of that without it."""
LIKELY = 3
"""The first candidates for a convolution share the time of trials, and all are tried: others are rarely the fastest."""
MANY = 1000
"""Nodes without a server of which some are enough for a trial; those have the links that they have to each other."""
SECONDS, SHARE = 2.0, 0.02
"""The trials of all candidates take about this long, or this share of the run if that is more."""


VECTORS = 14
"""Vectors of a model for each client in a block, at the peak of a trial; a block that needs more than is free is not
tried, as the system may end a process that asks for too much."""


class Candidate(NamedTuple):
    """A way to run clients: in blocks of ``size`` (0: the loop), on ``threads`` at the same time (0: one by one); with
    local steps as ``graphs``, of the loop or of blocks, these are streams of a GPU.
    """

    size: int
    threads: int
    kernels: Kernels = REFERENCE
    graphs: bool = False

    @property
    def kind(self) -> str:
        """Name of the backend."""
        return "graphed" if self.graphs else "blocks" if self.size else "loop"

    @property
    def name(self) -> str:
        """Name in the cache and in a manifest."""
        size = [str(self.size)] * (self.size > 0)
        kind = " in blocks of ".join([self.kind, *size]) if self.graphs else str(self.size or self.kind)
        places = f" on {self.threads} {'streams' if self.graphs else 'threads'}" if self.threads else ""
        return ", ".join([kind + places, *self.kernels.names])

    @property
    def backend(self) -> Backend:
        """The backend that does it."""
        return self.backend_with()

    def backend_with(self, **noted: Any) -> Backend:
        """The backend, whose graphs are ``Graphs(**noted)``."""
        if self.graphs and not self.size:
            return Graphed(kernels=self.kernels, streams=max(self.threads, 1), **noted)
        graphs = Graphs(**noted) if self.graphs else None
        return Blocks(self.size, self.threads, self.kernels, graphs) if self.size else Loop(self.threads, self.kernels)

    @property
    def chosen(self) -> dict[str, Any]:
        """What a manifest says of it."""
        size = {"block_size": self.size} if self.size else {}
        threads = {"client_threads": self.threads} if self.threads else {}
        kernels = {"kernels": self.kernels.names} if self.kernels.names else {}
        return {"backend": self.kind, **size, **threads, **kernels}


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
        threads: clients or blocks at the same time, 0 for one; by default both none and PyTorch's number are tried, on
            a GPU several numbers of streams.
        kernels: try others than those of the reference, too.
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
            seconds = _measure(federation, algorithm, ids, tried, rounds, varied, dropped)
            if not dropped:                                # nor are these cached
                seconds = _keep(cache, key, seconds)
        except BlockError as error:                        # not cached: its cause may be mended
            if blocks_only:
                raise
            say(f"{error.reason}; clients run one at a time")
            one_by_one, reason = [candidate for candidate in tried if not candidate.size], error.reason
            seconds = _measure(federation, algorithm, ids, one_by_one, rounds, varied, dropped)
        if federation.model.device.type == "cuda":
            gc.collect()                                   # graphs and the clients that they hold are cycles
            torch.cuda.empty_cache()
    for name, why in dropped.items():
        say(f"{name} was not measured: {why}")
    fastest = _fastest(seconds, tried)
    remarks = {"reason": reason, "dropped": dropped}
    return {**fastest.chosen, **{name: told for name, told in remarks.items() if told}, "trial_seconds": seconds}


def candidates(federation: Federation, cohort: int, blocks_only: bool, threads: int | None) -> list[Candidate]:
    """What to try, in this order: on threads too if there are several clients or blocks, and PyTorch has several; on a
    GPU with local steps as graphs, too, on several streams, or in blocks.
    """
    model, most = federation.model, torch.get_num_threads()
    gpu = model.device.type == "cuda"
    numbers = [0] if gpu else [threads] if threads is not None else [0, most] if most > 1 else [0]
    larger = [size for size in LARGER if size * model.d * model.dtype.itemsize <= SMALL_BLOCK]
    below = [size for size in (*SIZES, *larger) if size < cohort]
    sizes = [*[0] * (not blocks_only), *below, *[cohort] * (cohort <= SIZES[-1])]
    found = [Candidate(size, n) for size in sizes for n in numbers if not n or threads or cohort > (size or 1)]
    if gpu:
        streams = STREAMS if threads is None else (max(threads, 1),)
        graphs = [Candidate(0, n if n > 1 else 0, graphs=True) for n in streams if n <= cohort or threads]
        if blocks_only:
            return found
        replayed = [c._replace(graphs=True) for c in found if c.size > 1 and not threads]
        return sorted([*found[:1], *graphs, *found[1:], *replayed], key=lambda c: c.size)   # without graphs first
    if not model.convolutional:                            # dense networks gain least by threads
        return sorted(found, key=lambda c: c.threads > 0)
    # convolutions gain most in blocks of 1 on threads, and trials of large blocks take longest
    return found[:1] + sorted(found[1:], key=lambda c: (c.size > 1, c.size == 0, not c.threads))


def _fastest(seconds: dict[str, float], tried: Sequence[Candidate]) -> Candidate:
    """The fastest of those that were measured, with margins for the reference and its kernels."""
    every = [candidate._replace(kernels=kernels) for candidate in tried for kernels in KERNELS]

    def at_best(candidate: Candidate) -> float:
        literal = candidate == Candidate(0, 0)
        return seconds[candidate.name] * (MARGIN if literal else 1) / CLOSE ** len(candidate.kernels.names)

    return min((candidate for candidate in every if candidate.name in seconds), key=at_best)


def _in_turn(
    tried: list[Candidate], seconds: dict[str, float], varied: list[dict[str, bool]]
) -> Iterator[Candidate]:
    """What to measure next: the first once for its order of magnitude; kernels vary for the fastest.

    Args:
        seconds: what has been measured so far.
    """
    yield from (tried[0], *tried)
    best = _fastest(seconds, tried)
    for change in varied:
        yield best._replace(kernels=replace(best.kernels, **change))
        best = _fastest(seconds, tried)


def _measure(
    federation: Federation, algorithm: Algorithm[Any], ids: np.ndarray, tried: list[Candidate], rounds: int,
    varied: list[dict[str, bool]], dropped: dict[str, str],
) -> dict[str, float]:  # fmt: skip
    """Seconds of a round by candidate, from rounds of some clients and steps. What would exceed the time for trials, in
    processor time, is omitted, and so is what exceeds the memory that is free or fails for want of it. Where steps
    cannot be graphs, or a trial of them fails, ``dropped`` is told why.

    Raises:
        BlockError: the model or the algorithm runs in the loop alone.
    """
    steps = int(federation.work.counts(federation.shards.sizes[ids]).max())
    least, seconds = min(TRIAL_STEPS, steps), dict[str, float]()
    each, cost = float("inf"), float("inf")                # seconds of a client's step; of a trial of one
    before, left, last = snapshot(federation.model), SECONDS, (0, 0)
    too_large: float = math.inf                            # bytes of vectors for which there was no memory
    try:
        if federation.model.convolutional:                     # whose trials are dear and short: by gradients alone
            with torch_threads(1 if any(candidate.threads for candidate in tried) else None):
                kernels = fastest(federation.model, _minibatch(federation, int(ids[0])), varied)
            tried, varied = [candidate._replace(kernels=kernels) for candidate in tried], []
        for candidate in _in_turn(tried, seconds, varied):
            shares = min(LIKELY, len(tried)) if federation.model.convolutional else len(tried) + len(varied)
            affordable = int(max(left, 0.0) / shares / cost)                     # steps of clients
            some = min(len(ids), max(candidate.size or 1, affordable // steps) * max(candidate.threads, 1))
            long = min(steps, max(least, affordable // some))
            known = candidate.name in seconds and (some, long) == last
            likely = federation.model.convolutional and candidate in tried[:LIKELY] and candidate.name not in seconds
            if known or (seconds and not likely and some * long * cost > max(left, 0.0)):
                continue
            at_once = held(candidate, federation)
            if at_once >= too_large or (seconds and VECTORS * at_once > free_memory(federation.model.device)):
                continue
            if candidate.graphs and dropped:
                continue
            backend = candidate.backend
            trial = replace(federation, work=replace(federation.work, steps=long), backend=backend)
            try:
                (took, spent), ran = _best_of(trial, algorithm, ids, some)
            except Exception as error:
                if not seconds or not (candidate.graphs or out_of_memory(error)):
                    raise
                if out_of_memory(error):
                    too_large = at_once
                else:
                    dropped[candidate.name] = in_one_line(error)
                torch.cuda.empty_cache()
                continue
            if reasons := eager_in(backend):
                dropped[candidate.name] = next(iter(reasons.values()))
                continue
            last = some, long
            each, cost = min(each, took / (ran * long)), min(cost, spent / (ran * long))
            seconds[candidate.name] = float(f"{took / (ran * long) * len(ids) * steps:.6f}")
            left -= spent
            if len(seconds) == 1:
                left = max(SECONDS, SHARE * rounds * each * len(ids) * steps) - spent
    finally:
        before.restore()                                   # what a module holds of a block means nothing outside it
    return seconds


def _minibatch(federation: Federation, node: int) -> Batch:
    """A minibatch of a client."""
    size = int(federation.work.batch(federation.shards.sizes[node]))
    return federation.shards.rows(node).part(slice(size))._replace(key=torch.zeros(size, dtype=torch.int64))


def held(candidate: Candidate, federation: Federation) -> int:
    """Bytes of one vector of a model for every client that a candidate runs at the same time."""
    model = federation.model
    return max(candidate.size, 1) * max(candidate.threads, 1) * model.d * model.dtype.itemsize


def _best_of(
    trial: Federation, algorithm: Algorithm[Any], ids: np.ndarray, some: int
) -> tuple[tuple[float, float], int]:
    """Seconds of a round of the first ``some`` clients, or of all where the method needs them; those of processors for
    the whole trial, but for what it does once; and the number of clients.
    """
    if some < len(ids) and (has_server(algorithm) or len(ids) > MANY):
        try:
            return _best(_times(trial, algorithm, ids[:some])), some
        except BlockError:
            raise
        except FedsimError as error:                       # a method of everybody, or a rule that needs more messages
            if out_of_memory(error):
                raise
    return _best(_times(trial, algorithm, ids)), len(ids)


def _best(times: list[tuple[float, float]]) -> tuple[float, float]:
    warm = times[1:]                                       # the first round imports, traces and records
    return min(took for took, _ in warm), min(spent for _, spent in warm) * len(times)


def _times(trial: Federation, algorithm: Algorithm[Any], ids: np.ndarray) -> list[tuple[float, float]]:
    """Seconds of each of three rounds, or of two if they are long, and those of processors."""
    x, times, name = trial.model.shared(), list[tuple[float, float]](), type(algorithm).__name__
    with explained(f"{name}.init"):
        state = algorithm.init(x, cohort(trial, 0, ids))
    check(f"{name}.init", state, server=has_server(algorithm))
    for round in (1, 2, 3):
        start, spent = time.perf_counter(), time.process_time()
        with explained(f"{name}.round in round {round}"):
            algorithm.round(state, cohort(trial, round, ids))
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append((time.perf_counter() - start, time.process_time() - spent))
        if round == 2 and times[-1][1] > SECONDS / 10:
            break
    return times


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
