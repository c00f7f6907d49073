"""Actor process: execute a run of clients at a time with the in-process backends, on samples in shared memory.

Messages stay in the process that computed them: it computes their sums, and sends only the rows that another process
needs. New client memories go to the object store, where they outlive the process. This module does not depend on Ray,
which passes arguments by value and stores the results.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch

from fedsim.backends.ray.object_store import arrays, lent_tree, shared, sums_on_host, to_array, to_tensor
from fedsim.backends.ray.protocol import (
    ClientFailure,
    ClientTask,
    Facts,
    GossipExchange,
    Report,
    Usage,
    WorkerSetup,
    described,
    form,
)
from fedsim.controller.scoring import Scores, score
from fedsim.engine.blocks import Blocks
from fedsim.engine.captured import eager_in
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.graphed import Graphed
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import ClientError, FedsimError
from fedsim.messages.mixing import mix_rows, squared_distances
from fedsim.messages.stacked import Stacked, partial_means
from fedsim.tree import build, leaves, shaped, tree_map, unpacked
from fedsim.types import Kept

MOST_FUNCTIONS = 64
"""Client functions retained; only an algorithm that creates a new one every round exceeds this."""


class Worker:
    """One process of the pool.

    Args:
        paths: the driver's import path.
        threads: PyTorch threads.
    """

    def __init__(self, paths: Sequence[str], threads: int) -> None:
        sys.path += [path for path in paths if path not in sys.path]
        torch.set_num_threads(threads)
        self._functions: dict[str, Any] = {}
        self._held: dict[int, Any] = {}                    # messages by token, every tensor [b, ...]
        self._later: dict[int, Any] = {}                   # what `run` could not return, by token
        self._fed: Federation
        self._graphed = Graphed()                          # with the graphs captured so far
        self._seconds = 0.0                                # of runs since the last call of `device`
        self._profile: Any = None                          # of the GPU since then

    def ready(self) -> Facts:
        """Report the process once it is up."""
        return Facts(os.getpid(), resident())

    def device(self) -> Usage:
        """Use of the GPU since the previous call."""
        total = torch.cuda.mem_get_info()[1]
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds, self._seconds = self._seconds, 0.0
        return Usage(peak, total, seconds, self._busy())

    def _busy(self) -> float:
        """Seconds in which kernels ran since the previous call; 0 where there is no profiler of GPUs."""
        busy, cuda = 0.0, torch.profiler.ProfilerActivity.CUDA
        if self._profile is not None:
            self._profile.stop()
            kernels = [e for e in self._profile.events() if "CUDA" in str(e.device_type)]
            busy = 1e-6 * sum(kernel.device_time_total for kernel in kernels)
        if cuda in torch.profiler.supported_activities():  # type: ignore[no-untyped-call]
            self._profile = torch.profiler.profile(activities=[cuda])
            self._profile.start()
        return busy

    def settle(self, site: bytes, *samples: np.ndarray) -> None:
        """Set up a federation; the samples stay in shared memory."""
        self.forget_all()
        self._functions.clear()
        s: WorkerSetup = pickle.loads(site)
        model = Model(
            s.module, s.loss, s.penalty, device=s.device, dtype=s.dtype, mixes=s.mixes, stacks=s.stacks,
            numerics=s.numerics,
        )  # fmt: skip
        model.sharing = None if s.sharing is None else s.sharing.to(s.device)
        x, y = shaped(s.like, (shared(array).to(s.device) for array in samples))
        shards = Shards(x, y, s.offsets)
        self._fed = Federation(model, shards, s.work, s.seed, Loop())
        self._graphed = Graphed()

    def forget(self, *tokens: int) -> None:
        """Release messages, and results that were never fetched, by token."""
        for token in tokens:
            self._held.pop(token, None)
            self._later.pop(token, None)

    def forget_all(self) -> None:
        """Release all messages and memories."""
        self._held.clear()
        self._later.clear()

    def learn(self, name: str, fn: bytes) -> None:
        """Register a pickled client function by name; evict the oldest beyond `MOST_FUNCTIONS`, as the driver does."""
        self._functions[name] = pickle.loads(fn)
        if len(self._functions) > MOST_FUNCTIONS:
            del self._functions[next(iter(self._functions))]

    def run(self, task: ClientTask, down: list[np.ndarray], first: list[np.ndarray], *rows: np.ndarray) -> Any:
        """Run the clients; return a `Report`, then the tensors of their new memories, client by client, or, if the task
        ``hands`` over its messages, those of the messages, each ``[b, ...]``.

        Args:
            task: the run.
            down: tensors of the broadcast.
            first: tensors of the initial memory, for clients that have none yet.
            rows: tensors of the existing memories, client by client.
        """
        self.forget(*task.drop)
        count, begun = 1 + task.results, time.perf_counter()
        try:
            report, tensors = self._run(task, down, first, rows)
            self._seconds += time.perf_counter() - begun
        except Exception as error:
            raised = error                                 # diagnosed below, outside the handler: no chained traceback
        else:
            if len(tensors) != task.results:               # not the expected number: the driver fetches them later
                self._later[task.token] = tensors
                tensors = []
            return several([report, *tensors], count)
        empty = np.zeros(0, np.int64)
        failed = self._failure(raised, task, down, first, rows)
        return several([Report(empty, empty, empty, empty, None, None, (), failed)], count)

    def later(self, token: int) -> Any:
        """Return the tensors that `run` could not return."""
        found = self._later.pop(token)
        return several(found, len(found))

    def _run(
        self, task: ClientTask, down: Any, first: Any, rows: Sequence[np.ndarray]
    ) -> tuple[Report, list[np.ndarray]]:
        fed = replace(self._fed, decay=lambda round: task.decay)
        meter = Meter(fed)
        backend = self._backend(task)
        call = self._call(task, down, first, rows)
        sent, memory = backend.run(fed, meter, call)
        eager = tuple(eager_in(backend).items())
        of = [memory[node] for node in task.ids.tolist()] if memory else []
        gradients, kept = meter.ledger.gradient_evaluations[task.ids], tree_map(form, of[0]) if of else ()
        tensors = [array for tree in of for array in arrays(tree)]
        if sent is None:
            nothing = np.zeros(len(task.ids), np.int64)
            return Report(nothing, nothing, nothing == 0, gradients, None, None, kept, eager=eager), tensors
        messages = sent.stacked()
        if task.hands:
            tensors += arrays(messages)
        else:
            self._held[task.token] = messages
        stack, one = Stacked(messages), tree_map(lambda t: t[:1], messages)
        forms = [tree_map(lambda t: form(t[0]), tree) for tree in (one, unpacked(one))]
        sizes, bits = np.array(stack.sizes()), np.array(stack.paper_bits())
        return Report(sizes, bits, stack.finite(), gradients, forms[0], forms[1], kept, eager=eager), tensors

    def _backend(self, task: ClientTask) -> Any:
        if not task.streams:
            return Blocks(task.block_size) if task.block_size else Loop()
        if self._graphed.streams != task.streams:
            self._graphed = Graphed(streams=task.streams)
        return Blocks(task.block_size, graphs=self._graphed) if task.block_size else self._graphed

    def _call(self, task: ClientTask, down: Any, first: Any, rows: Sequence[np.ndarray]) -> ClientCall:
        mine = self._mine(task, first, rows)
        return ClientCall(
            self._functions[task.fn], task.ids, task.round, self._tree(task.down, down), mine, task.sends, task.keeps,
            task.tasks,
        )  # fmt: skip

    def _mine(self, task: ClientTask, first: list[np.ndarray], rows: Sequence[np.ndarray]) -> Kept[Any] | None:
        if task.mine is None:
            return None
        values, width = iter(rows), len(leaves(task.mine))
        known = task.ids[task.known].tolist()
        device = self._fed.model.device
        given = {node: lent_tree(task.mine, [next(values) for _ in range(width)], device) for node in known}
        return Kept(self._fed.shards.n, self._tree(task.mine, first) if first else task.mine, given)

    def _tree(self, like: Any, values: Sequence[np.ndarray]) -> Any:
        """Copy arrays to tensors of the form ``like`` on the device."""
        if like is None:
            return None
        device = self._fed.model.device
        pairs = zip(values, leaves(like), strict=True)
        return build(like, iter([to_tensor(value, leaf.dtype, device) for value, leaf in pairs]))

    def _failure(
        self, error: Exception, task: ClientTask, down: Any, first: Any, rows: Sequence[np.ndarray]
    ) -> ClientFailure:
        """Find the failing clients by running them one by one, so that one retry of the round can omit all of them."""
        fn = self._functions[task.fn]
        line, text = described(_raised(error), fn)
        if isinstance(error, torch.OutOfMemoryError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return ClientFailure([], line, text, full=True)
        if isinstance(error, FedsimError) and not isinstance(error, ClientError):
            return ClientFailure([], line, text, refused=error)
        call = self._call(task, down, first, rows)
        failed: dict[int, tuple[str, str]] = {}
        for node in task.ids.tolist():
            try:
                Loop().run(self._fed, Meter(self._fed), call._replace(ids=np.array([node])))
            except Exception as alone:
                failed[node] = described(_raised(alone), fn)
        if not failed:
            return ClientFailure(task.ids.tolist(), line, text)
        return ClientFailure(list(failed), *next(iter(failed.values())))

    def score(
        self, x: np.ndarray, start: int, stop: int, classification: bool, keep: bool, *samples: np.ndarray
    ) -> Scores:
        """Score the model ``x [d]`` on samples ``start`` to ``stop``, exclusive."""
        model, shards = self._fed.model, self._fed.shards
        part, y = shaped((shards.x, shards.y), (shared(t)[start:stop].to(model.device) for t in samples))
        return score(model, to_tensor(x, model.dtype, model.device), part, y, classification, keep)

    def mean(self, token: int, w: np.ndarray, start: int) -> Any:
        """Sums of messages, weighted by ``w [b]``, over the complete subtrees of positions ``start``, ...: a `Sums` for
        every vector.
        """
        weights = torch.from_numpy(w.copy()).to(self._fed.model.device)
        return sums_on_host(partial_means(self._held[token], weights, start))

    def center(self, token: int, w: np.ndarray, start: int) -> Any:
        """`mean` for the first tensor of the unpacked messages alone."""
        weights = torch.from_numpy(w.copy()).to(self._fed.model.device)
        return sums_on_host(partial_means(leaves(unpacked(self._held[token]))[0], weights, start))

    def distances(self, token: int, center: np.ndarray) -> np.ndarray:
        """Squared distances ``[b]`` of the rows of the first unpacked tensor to a vector."""
        x = leaves(unpacked(self._held[token]))[0]
        return to_array(squared_distances(x, to_tensor(center, x.dtype, x.device)))

    def stacked(self, token: int) -> list[np.ndarray]:
        """The messages, every tensor ``[b, ...]``."""
        return arrays(self._held[token])

    def give(self, token: int, picks: Sequence[np.ndarray]) -> Any:
        """Message rows for other workers, as they are sent: every tensor ``[k, ...]`` for each pick."""
        stacks = leaves(self._held[token])
        found = [to_array(t[torch.from_numpy(pick).to(t.device)]) for pick in picks for t in stacks]
        return several(found, len(found))

    def mix(self, exchange: GossipExchange, *others: np.ndarray) -> Any:
        """Perform one gossip exchange: store the weighted sums under another token. Return None and, after the last
        exchange, every tensor of every row.

        Args:
            exchange: its neighbours and weights.
            others: rows of other workers, every tensor for each of them.
        """
        e, held = exchange, self._held[exchange.token]
        stacks, device = leaves(held), self._fed.model.device
        received = []
        for k, ours in enumerate(stacks):
            theirs = [to_tensor(a, ours.dtype, device) for a in others[k :: len(stacks)]]
            rows = torch.cat([ours[torch.from_numpy(e.own).to(device)], *theirs])
            received.append(rows[torch.from_numpy(e.order).to(device)])
        mixed = tree_map(lambda x: mix_rows(e.w, x), unpacked(build(held, iter(received))))
        if not e.keep:
            del self._held[e.token]
        self._held[e.into] = mixed
        found = [to_array(t[i]) for i in range(e.w.shape[0]) for t in leaves(mixed)] if e.last else []
        return several([None, *found], 1 + len(found))


def _raised(error: Exception) -> Exception:
    """The exception of the client's code behind the loop's error."""
    return error.__cause__ if isinstance(error, ClientError) and isinstance(error.__cause__, Exception) else error


def several(values: list[Any], count: int) -> Any:
    """Return value of a Ray method with ``count`` results, padded with None."""
    values = values + [None] * (count - len(values))
    return values[0] if count == 1 else tuple(values)


def resident() -> int:
    """Memory of this process in bytes: proportional set size where the system reports it, else unique set size."""
    found = psutil.Process().memory_full_info()
    return int(getattr(found, "pss", found.uss))
