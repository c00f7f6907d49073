"""What runs in an actor: a run of clients at a time, through the in-process backends, on samples in shared memory.

Messages stay in the process that computed them until they are read: their sums are computed here, and only rows that
another process needs are given out. New memories of clients are handed to the object store, where they outlive this
process. Nothing here knows Ray: arguments arrive as values, results go to where Ray puts them.
"""

from __future__ import annotations

import os
import pickle
import sys
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
    WorkerSetup,
    described,
    form,
)
from fedsim.controller.evaluate import Scores, score
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.local_work import Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.errors import FedsimError, explained, title
from fedsim.messages.mixing import mix_rows, squared_distances
from fedsim.messages.stacked import Stacked, partial_means
from fedsim.tree import build, leaves, tree_map, unpacked
from fedsim.types import Kept

MOST_FUNCTIONS = 64
"""Client functions that are remembered; more come only from one that is made anew every round."""


class Worker:
    """One process of the pool.

    Args:
        paths: where the driver imports from.
        threads: for PyTorch.
    """

    def __init__(self, paths: Sequence[str], threads: int) -> None:
        sys.path += [path for path in paths if path not in sys.path]
        torch.set_num_threads(threads)
        self._functions: dict[str, Any] = {}
        self._held: dict[int, Any] = {}                    # messages by token, every tensor [b, ...]
        self._memories: dict[int, Any] = {}
        self._fed: Federation

    def ready(self) -> Facts:
        """Confirm that the worker is up."""
        return Facts(os.getpid(), resident())

    def device(self) -> tuple[int, int]:
        """Bytes of its GPU: in use by tensors at most since this was asked last, and all that it has."""
        total = torch.cuda.mem_get_info()[1]
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak, total

    def settle(self, site: bytes, x: np.ndarray, y: np.ndarray) -> None:
        """Take up a federation; the samples stay where they are in shared memory."""
        self.forget_all()
        self._functions.clear()
        s: WorkerSetup = pickle.loads(site)
        model = Model(s.module, s.loss, s.penalty, device=s.device, dtype=s.dtype)
        shards = Shards(shared(x).to(s.device), shared(y).to(s.device), s.offsets)
        self._fed = Federation(model, shards, s.work, s.seed, Loop())

    def forget(self, *tokens: int) -> None:
        """Drop messages that nobody needs any more, and memories that nobody asked for."""
        for token in tokens:
            self._held.pop(token, None)
            self._memories.pop(token, None)

    def forget_all(self) -> None:
        """The same for all there are."""
        self._held.clear()
        self._memories.clear()

    def learn(self, name: str, fn: bytes) -> None:
        """Keep a client function under a name; the oldest one goes where there are too many, as the driver knows."""
        self._functions[name] = pickle.loads(fn)
        if len(self._functions) > MOST_FUNCTIONS:
            del self._functions[next(iter(self._functions))]

    def run(self, task: ClientTask, down: list[np.ndarray], first: list[np.ndarray], *rows: np.ndarray) -> Any:
        """Run the clients: a `Report`, then the tensors of their new memories, client by client.

        Args:
            task: what to run.
            down: tensors that every client gets.
            first: tensors of the memory of clients that have none yet.
            rows: tensors of the memories that are known, client by client.
        """
        self.forget(*task.drop)
        count = 1 + task.leaves * len(task.ids)
        try:
            report, memories = self._run(task, down, first, rows)
        except Exception as error:
            raised = error                                 # looked into below, where nothing is being handled
        else:
            if len(memories) != count - 1:                 # other tensors than expected: they are asked for again
                self._memories[task.token] = memories
                memories = []
            return several([report, *memories], count)
        empty = np.zeros(0, np.int64)
        failed = self._failure(raised, task, down, first, rows)
        return several([Report(empty, empty, empty, empty, None, None, (), failed)], count)

    def memories(self, token: int) -> Any:
        """The tensors of new memories that `run` could not return."""
        found = self._memories.pop(token)
        return several(found, len(found))

    def _run(
        self, task: ClientTask, down: Any, first: Any, rows: Sequence[np.ndarray]
    ) -> tuple[Report, list[np.ndarray]]:
        fed = replace(self._fed, decay=lambda round: task.decay)
        meter = Meter(fed)
        backend: Any = Blocks(task.block_size) if task.block_size else Loop()
        call = self._call(task, down, first, rows)
        with explained(title(call.fn), task.round):
            sent, memory = backend.run(fed, meter, call)
        of = [memory[node] for node in task.ids.tolist()] if memory else []
        gradients, kept = meter.ledger.gradient_evaluations[task.ids], tree_map(form, of[0]) if of else ()
        tensors = [array for tree in of for array in arrays(tree)]
        if sent is None:
            nothing = np.zeros(len(task.ids), np.int64)
            return Report(nothing, nothing, nothing == 0, gradients, None, None, kept), tensors
        messages = sent.stacked()
        self._held[task.token] = messages
        stack, one = Stacked(messages), tree_map(lambda t: t[:1], messages)
        forms = [tree_map(lambda t: form(t[0]), tree) for tree in (one, unpacked(one))]
        sizes, bits = np.array(stack.sizes()), np.array(stack.paper_bits())
        return Report(sizes, bits, stack.finite(), gradients, forms[0], forms[1], kept), tensors

    def _call(self, task: ClientTask, down: Any, first: Any, rows: Sequence[np.ndarray]) -> ClientCall:
        mine = self._mine(task, first, rows)
        return ClientCall(
            self._functions[task.fn], task.ids, task.round, self._tree(task.down, down), mine, task.sends
        )

    def _mine(self, task: ClientTask, first: list[np.ndarray], rows: Sequence[np.ndarray]) -> Kept[Any] | None:
        if task.mine is None:
            return None
        values, width = iter(rows), len(leaves(task.mine))
        known = task.ids[task.known].tolist()
        device = self._fed.model.device
        given = {node: lent_tree(task.mine, [next(values) for _ in range(width)], device) for node in known}
        return Kept(self._fed.shards.n, self._tree(task.mine, first) if first else task.mine, given)

    def _tree(self, like: Any, values: Sequence[np.ndarray]) -> Any:
        """Tensors of our own of a given form, on the device."""
        if like is None:
            return None
        device = self._fed.model.device
        pairs = zip(values, leaves(like), strict=True)
        return build(like, iter([to_tensor(value, leaf.dtype, device) for value, leaf in pairs]))

    def _failure(
        self, error: Exception, task: ClientTask, down: Any, first: Any, rows: Sequence[np.ndarray]
    ) -> ClientFailure:
        """Who it was: the clients of the run one by one, so that a round is done again without all of them at once."""
        fn = self._functions[task.fn]
        line, text = described(error, fn)
        if isinstance(error, torch.OutOfMemoryError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return ClientFailure([], line, text, full=True)
        if isinstance(error, FedsimError):
            return ClientFailure([], line, text, refused=error)
        call = self._call(task, down, first, rows)
        failed: dict[int, tuple[str, str]] = {}
        for node in task.ids.tolist():
            try:
                Loop().run(self._fed, Meter(self._fed), call._replace(ids=np.array([node])))
            except Exception as alone:
                failed[node] = described(alone, fn)
        if not failed:
            return ClientFailure(task.ids.tolist(), line, text)
        return ClientFailure(list(failed), *next(iter(failed.values())))

    def score(
        self, x: np.ndarray, inputs: np.ndarray, targets: np.ndarray, start: int, stop: int, classification: bool
    ) -> Scores:
        """The model ``x [d]`` on the samples from ``start`` up to ``stop``."""
        model = self._fed.model
        part, y = (shared(samples)[start:stop].to(model.device) for samples in (inputs, targets))
        return score(model, to_tensor(x, model.dtype, model.device), part, y, classification)

    def mean(self, token: int, w: np.ndarray, start: int) -> Any:
        """Sums of messages with weights ``w [b]`` over the complete subtrees of positions ``start``, ...: `Sums` for
        every vector.
        """
        weights = torch.from_numpy(w.copy()).to(self._fed.model.device)
        return sums_on_host(partial_means(self._held[token], weights, start))

    def center(self, token: int, w: np.ndarray, start: int) -> Any:
        """The same for the first tensor of what messages stand for."""
        weights = torch.from_numpy(w.copy()).to(self._fed.model.device)
        return sums_on_host(partial_means(leaves(unpacked(self._held[token]))[0], weights, start))

    def distances(self, token: int, center: np.ndarray) -> np.ndarray:
        """Squared distance of each row of the first tensor to a vector, ``[b]``."""
        x = leaves(unpacked(self._held[token]))[0]
        return to_array(squared_distances(x, to_tensor(center, x.dtype, x.device)))

    def stacked(self, token: int) -> list[np.ndarray]:
        """The messages themselves, every tensor ``[b, ...]``."""
        return arrays(self._held[token])

    def give(self, token: int, picks: Sequence[np.ndarray]) -> Any:
        """Rows for others, as they are sent: for each pick every tensor ``[k, ...]`` of them."""
        stacks = leaves(self._held[token])
        found = [to_array(t[torch.from_numpy(pick).to(t.device)]) for pick in picks for t in stacks]
        return several(found, len(found))

    def mix(self, exchange: GossipExchange, *others: np.ndarray) -> Any:
        """One exchange between neighbours: keep the weighted sums under another token. Returns None, and where it
        is the last exchange every tensor of every row.

        Args:
            exchange: with whom.
            others: rows of others, for each of them every tensor.
        """
        e, held = exchange, self._held[exchange.token]
        stacks, device = leaves(held), self._fed.model.device
        heard = []
        for k, ours in enumerate(stacks):
            theirs = [to_tensor(a, ours.dtype, device) for a in others[k :: len(stacks)]]
            rows = torch.cat([ours[torch.from_numpy(e.own).to(device)], *theirs])
            heard.append(rows[torch.from_numpy(e.order).to(device)])
        mixed = tree_map(lambda x: mix_rows(e.w, x), unpacked(build(held, iter(heard))))
        if not e.keep:
            del self._held[e.token]
        self._held[e.into] = mixed
        found = [to_array(t[i]) for i in range(e.w.shape[0]) for t in leaves(mixed)] if e.last else []
        return several([None, *found], 1 + len(found))


def several(values: list[Any], count: int) -> Any:
    """What a method with ``count`` results returns; those that are missing are None."""
    values = values + [None] * (count - len(values))
    return values[0] if count == 1 else tuple(values)


def resident() -> int:
    """Bytes that this process holds: with its share of what it shares with others, where the system tells."""
    found = psutil.Process().memory_full_info()
    return int(getattr(found, "pss", found.uss))
