"""Ray backend: actors run clients, keep messages in the process that computed them, and put memories into the store.

Blocks are composed as in one process, from the cohort and the block size; consecutive blocks go to one worker, which
sums whole subtrees of a mean. Results are therefore bit-identical for any number of workers and after any failure: a
round is a function of the previous state, all of which is in the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.backends.ray.actors import Workers
from fedsim.backends.ray.object_store import FarRow, arrays, far_tree, to_array, to_tensor
from fedsim.backends.ray.protocol import ClientFailure, ClientTask, Report, form
from fedsim.backends.ray.remote_messages import TOKENS, RayMessages, Run, by_id
from fedsim.controller.scoring import CHUNK, Scores
from fedsim.engine.federation import ClientCall, Federation, Meter
from fedsim.engine.graphed import Graphed
from fedsim.errors import BlockError, BlocksLostError, ClientError, ConfigError, RunError
from fedsim.messages.stacked import Stacked
from fedsim.tree import Samples, build, count, fetched, leaves, tree_map
from fedsim.types import Messages
from fedsim.values import Far, Vector


class Begun(NamedTuple):
    """A call that workers have begun.

    Attributes:
        name: of the client function, at the workers.
        token: identifies the messages there.
        order: ``[c]`` index into the ids for every position in the order of execution.
        runs: positions of each worker.
        calls: for each run, references to its report and to the tensors beside it.
    """

    name: str
    token: int
    order: np.ndarray
    runs: list[Run]
    calls: list[list[Any]]


class RayActors:
    """Backend whose clients run in the actors of a session.

    Args:
        workers: actors of the session.
        block_size: clients in a block; 0 to run them one by one. Halved when a device is out of memory.
        or_loop: run clients one by one once a client function cannot run in blocks.
        graphs: without blocks, run so many clients at the same time on every GPU with local steps as CUDA graphs, and
            tell which are none. Halved when a device is out of memory.
    """

    def __init__(
        self, workers: Workers, block_size: int = 25, or_loop: bool = False, graphs: Graphed | None = None
    ) -> None:
        if block_size < 0:
            raise ConfigError(f"block size is {block_size}; expected 0 or more")
        self.workers, self.block_size, self.or_loop = workers, block_size, or_loop
        self.graphs, self.streams = graphs, 0 if graphs is None else graphs.streams
        self._widths: dict[str, int] = {}                  # number of tensors in a new memory, by client function
        self._sent: dict[str, Any] = {}                    # form of its message
        self._firsts: list[tuple[Any, Any]] = []           # initial memories in the object store

    def run(
        self, federation: Federation, meter: Meter, call: ClientCall
    ) -> tuple[Messages[Any] | None, dict[int, tuple[Any, ...]]]:
        """See ``fedsim.engine.federation.Backend``.

        Raises:
            ClientError: a client function raised.
            RoundLostError: a worker died; the round can be retried.
            BlocksLostError: the round can be retried with smaller blocks, or one client at a time.
            StateLostError: client memories are lost; only a checkpoint has them.
        """
        begun = self.begin(federation, call)
        reports = self.reports(begun, call.round)
        memory: dict[int, tuple[Any, ...]] = {}
        for run, report, (_, *refs) in zip(begun.runs, reports, begun.calls, strict=True):
            nodes = call.ids[begun.order[run.start : run.stop]]
            meter.ledger.gradient_evaluations[nodes] += report.gradients
            memory |= self._memories(run, report, nodes, refs, begun, federation.model.device)
        if not call.sends:
            return None, memory
        self._sent[begun.name] = reports[0].message
        held = begun.runs, begun.order, reports, begun.token
        return RayMessages(self.workers, *held, federation.model.device), memory

    def begin(self, federation: Federation, call: ClientCall, at: Sequence[int] | None = None) -> Begun:
        """Let workers run a call, and do not wait for them.

        Args:
            federation: the clients.
            call: the call.
            at: the workers in the order in which they get clients, whose messages are then among their results; by
                default they hold them.

        Raises:
            RoundLostError, BlocksLostError, StateLostError: see `run`.
        """
        w, ids, down, mine = self.workers, call.ids, call.down, call.mine
        w.settle(federation)
        name, put = w.teach(call.fn), w.ray.put
        sizes = federation.shards.sizes[ids]
        order = federation.work.order(sizes) if self.block_size else np.arange(len(ids))
        samples = federation.work.counts(sizes) * federation.work.batch(sizes)
        runs = split(samples[order] + 1.0, self.block_size or 1, len(w))
        if at is not None:
            runs = [run._replace(worker=at[run.worker]) for run in runs]
        width = self._widths.get(name, 0 if mine is None else len(leaves(mine.default)))
        token = next(TOKENS)
        sent = put([] if down is None else arrays(down))
        new = mine is not None and not all(node in mine.rows for node in ids.tolist())
        first = self._first(mine.default) if mine is not None and new else put([])
        calls = []
        for run in runs:
            nodes = ids[order[run.start : run.stop]]
            rows = {} if mine is None else {node: mine.rows[node] for node in nodes.tolist() if node in mine.rows}
            known = np.isin(nodes, list(rows))
            results = width * len(nodes) if at is None else len(leaves(self._sent.get(name, ())))
            task = ClientTask(
                token, nodes, call.round, federation.decay(max(1, call.round)), self.block_size, self.streams, name,
                call.sends, call.keeps,
                None if down is None else tree_map(form, down), None if mine is None else tree_map(form, mine.default),
                known, results, at is not None, w.dropped(run.worker),
                None if call.tasks is None else call.tasks[order[run.start : run.stop]],
            )  # fmt: skip
            refs = [ref for row in rows.values() for ref in self._refs(row)]
            calls.append(w.call(run.worker, "run", task, sent, first, *refs, results=1 + results))
        return Begun(name, token, order, runs, calls)

    def reports(self, begun: Begun, round: int) -> list[Report]:
        """The reports of a call's runs, once all of them are done.

        Raises:
            see `run`.
        """
        reports: list[Report] = self.workers.get([first for first, *_ in begun.calls])
        if any(report.failure is not None for report in reports):
            self.workers.drop(begun.token, [run.worker for run in begun.runs])   # messages of the successful runs
        self._check(reports, begun.name, round)
        for step, reason in [told for report in reports for told in report.eager]:
            assert self.graphs is not None, "only graphs can fail to be captured"
            self.graphs.said(step, reason)
        return reports

    def knows(self, fn: Callable[..., Any]) -> bool:
        """Whether a client function has sent messages, so that their form is known."""
        return self.workers.teach(fn) in self._sent

    def handed(self, begun: Begun, reports: Sequence[Report], device: torch.device) -> Stacked:
        """The messages of a call whose workers do not hold them."""
        like, parts = reports[0].message, []
        for run, report, (_, *refs) in zip(begun.runs, reports, begun.calls, strict=True):
            parts.append(self.workers.get(self._results(run, begun, refs, len(leaves(report.message)))))
        columns = zip(leaves(like), zip(*parts, strict=True), strict=True)
        rows = [to_tensor(by_id(column, begun.order), leaf.dtype, device) for leaf, column in columns]
        return Stacked(build(like, iter(rows)), begun.order)

    def _results(self, run: Run, begun: Begun, refs: list[Any], wanted: int) -> list[Any]:
        """References to the tensors beside a report, which are not those expected if their form has changed."""
        return refs if len(refs) == wanted else self.workers.call(run.worker, "later", begun.token, results=wanted)

    def _memories(
        self, run: Run, report: Report, nodes: np.ndarray, refs: list[Any], begun: Begun, device: torch.device
    ) -> dict[int, tuple[Any, ...]]:
        if not report.memory:
            return {}
        self._widths[begun.name] = width = len(leaves(report.memory))
        refs = self._results(run, begun, refs, width * len(nodes))
        rows, ray = [refs[k : k + width] for k in range(0, len(refs), width)], self.workers.ray
        return {n: far_tree(ray, report.memory, row, device) for n, row in zip(nodes.tolist(), rows, strict=True)}

    def _first(self, default: Any) -> Any:
        """Reference to the initial memory, for clients that have none yet."""
        for known, ref in self._firsts:
            if len(leaves(known)) == len(leaves(default)) and all(map(is_, leaves(known), leaves(default))):
                return ref
        ref = self.workers.ray.put(arrays(fetched(default)))
        self._firsts = [*self._firsts[-3:], (default, ref)]
        return ref

    def _refs(self, row: Any) -> list[Any]:
        """References to the tensors of a client's memory; put those into the store that are not there."""
        put = self.workers.ray.put
        return [leaf.ref if isinstance(leaf, FarRow) else put(to_array(fetched(leaf))) for leaf in leaves(row)]

    def _check(self, reports: Sequence[Report], name: str, round: int) -> None:
        """Raise the error of failed runs, if any."""
        failures: list[ClientFailure] = [report.failure for report in reports if report.failure is not None]
        for failure in failures:
            if isinstance(failure.refused, BlockError) and self.or_loop:
                self.block_size = 0
                raise BlocksLostError(f"{failure.refused.reason}; clients run one at a time from here on")
            if failure.refused is not None:
                raise failure.refused
        for failure in failures:
            if failure.full:
                if self.streams > 1 and not self.block_size:
                    self.streams //= 2
                    raise BlocksLostError(f"a device is out of memory: {self.streams} clients at a time from here on")
                if self.block_size <= 1:
                    raise RunError(f"a device has no memory for a single client: {failure.error}; use a smaller model")
                self.block_size //= 2
                raise BlocksLostError(f"a device is out of memory: blocks of {self.block_size} clients from here on")
        if failures:
            clients = sorted({node for failure in failures for node in failure.ids})
            raise ClientError(clients, name.rsplit(" ", 1)[0], round, failures[0].error, failures[0].traceback)


def split(costs: np.ndarray, size: int, workers: int) -> list[Run]:
    """Split clients into consecutive runs of whole blocks of about equal cost, at most one run per worker.

    Args:
        costs: of the clients in the order of execution.
        size: clients in a block.
        workers: number of workers.
    """
    edges = np.r_[np.arange(0, len(costs), size), len(costs)]
    paid = np.r_[0.0, np.cumsum(costs)][edges]
    shares = paid[-1] * np.arange(1, workers) / workers
    cuts = np.abs(paid[:, None] - shares).argmin(0) if workers > 1 else np.zeros(0, np.int64)
    bounds = np.unique(np.r_[0, edges[cuts], len(costs)])
    return [Run(k, int(a), int(b)) for k, (a, b) in enumerate(pairwise(bounds))]


def score(
    workers: Workers, x: Vector | Far, inputs: Samples, targets: Samples, classification: bool, keep: bool = False
) -> Scores:
    """Loss and accuracy of a model on each sample, and to ``keep`` the outputs, on workers with the federation set up.

    Raises:
        RoundLostError: a worker died.
        StateLostError: ``x`` was lost with the machine that held it.
    """
    ray = workers.ray
    model = x.ref if isinstance(x, FarRow) else ray.put(to_array(fetched(x)))
    samples = workers.share((inputs, targets))
    runs = split(np.ones(count(targets)), CHUNK, len(workers))
    how = classification, keep
    calls = [workers.call(run.worker, "score", model, run.start, run.stop, *how, *samples) for run in runs]
    parts: list[Scores] = workers.get([first for first, *_ in calls])
    hits = [part.accuracy for part in parts if part.accuracy is not None]
    outputs = [part.outputs for part in parts if part.outputs is not None]
    loss = np.concatenate([part.loss for part in parts])
    return Scores(loss, np.concatenate(hits) if hits else None, np.concatenate(outputs) if outputs else None)
