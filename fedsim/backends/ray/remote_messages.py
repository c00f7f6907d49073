"""Messages of a cohort in the processes that computed them: the driver has their sizes, and requests sums or rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.arrays import distinct
from fedsim.backends.ray.object_store import far_tree, sums_of, to_array, to_tensor
from fedsim.backends.ray.protocol import GossipExchange, Report
from fedsim.messages.mixing import root_mean
from fedsim.messages.stacked import Stacked, mean_of_parts, refuse_packed
from fedsim.tree import build, leaves, tree_map

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from fedsim.backends.ray.actors import Workers

TOKENS = count(1)
"""Tokens of messages, unique in a process."""


class Run(NamedTuple):
    """Consecutive positions in the order of execution, and the worker that holds their messages.

    Attributes:
        worker: number of the worker.
        start, stop: the positions.
    """

    worker: int
    start: int
    stop: int


class RayMessages:
    """``fedsim.types.Messages`` held by workers.

    Args:
        pool: the workers.
        runs: positions held by each worker; together all positions, in order.
        order: ``[c]`` index into the ids for every position in the order of execution.
        reports: of the runs.
        token: identifies the messages at the workers.
        device: of the results.
    """

    def __init__(
        self, pool: Workers, runs: Sequence[Run], order: np.ndarray, reports: Sequence[Report], token: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._pool, self._runs, self._order, self._token, self._device = pool, runs, order, token, device
        self._reports, self._like, self._dense = reports, reports[0].message, reports[0].dense
        self._owner, self._row = np.empty((2, len(order)), np.int64)   # of each client: its run, and its row there
        for number, (_, start, stop) in enumerate(runs):
            self._owner[order[start:stop]], self._row[order[start:stop]] = number, np.arange(stop - start)
        self._holders = [run.worker for run in runs]
        weakref.finalize(self, pool.drop, token, self._holders).atexit = False

    def _by_id(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return by_id(parts, self._order)

    def sizes(self) -> np.ndarray:
        """See ``Messages``."""
        return self._by_id([report.sizes for report in self._reports])

    def paper_bits(self) -> np.ndarray:
        """See ``Messages``."""
        return self._by_id([report.paper_bits for report in self._reports])

    def finite(self) -> np.ndarray:
        """See ``Messages``."""
        return self._by_id([report.finite for report in self._reports])

    def _ask(self, method: str, arguments: Callable[[Run], tuple[Any, ...]]) -> list[Any]:
        return self._pool.get([self._pool.call(run.worker, method, *arguments(run))[0] for run in self._runs])

    def stacked(self) -> Any:
        """See ``Messages``."""
        stacks = self._ask("stacked", lambda run: (self._token,))
        tensors = []
        for leaf, parts in zip(leaves(self._like), zip(*stacks, strict=True), strict=True):
            tensors.append(to_tensor(self._by_id(parts), leaf.dtype, self._device))
        return build(self._like, iter(tensors))

    def only(self, positions: np.ndarray) -> Stacked:
        """See ``Messages``; gathered in this process."""
        return Stacked(self.stacked(), self._order).only(positions)

    def mean(self, w: Tensor) -> Any:
        """See ``Messages``."""
        return self._sum("mean", self._token, w.cpu().numpy()[self._order])

    def _sum(self, method: str, token: int, w: np.ndarray) -> Any:
        parts = self._ask(method, lambda run: (token, w[run.start : run.stop], run.start))
        return tree_map(Tensor.clone, mean_of_parts([sums_of(part, self._device) for part in parts], len(w)))

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[dict[int, Any], float | None]:
        """See ``Messages``."""
        refuse_packed(self._like, steps)
        plan = [self._neighbours(w, run) for run in self._runs]
        before = self._spread(self._token) if measure else 0.0
        token = self._token
        rows: list[list[Any]] = []
        for step in range(steps):
            into = next(TOKENS)
            rows = self._exchange(plan, token, into, step == steps - 1)
            token = into
        contraction = self._spread(token) / before if before else None
        self._pool.drop(token, self._holders)
        places = zip(self._order.tolist(), rows, strict=True)
        return {at: far_tree(self._pool.ray, self._dense, refs, self._device) for at, refs in places}, contraction

    def _neighbours(self, w: csr_array, run: Run) -> _Neighbours:
        ours = self._order[run.start : run.stop]
        mine = w[ours]
        senders = distinct(mine.indices)                   # ids, in order
        groups = {number: senders[self._owner[senders] == number] for number in range(len(self._runs))}
        me = self._runs.index(run)
        own = groups.pop(me)
        order = np.argsort(np.concatenate([own, *groups.values()]))
        picks = {number: self._row[group] for number, group in groups.items() if len(group)}
        among = mine[:, senders]
        among.sort_indices()                               # summation order of the neighbours
        return _Neighbours(among, self._row[own], order, picks)

    def _exchange(self, plan: Sequence[_Neighbours], token: int, into: int, last: bool) -> list[list[Any]]:
        """Perform one gossip step for all runs; the last one returns references to each row's tensors, by position."""
        sent = len(leaves(self._like if token == self._token else self._dense))
        given: dict[tuple[int, int], list[Any]] = {}       # (from, to) -> a reference for every tensor
        for source, run in enumerate(self._runs):
            wanted = {to: there.picks[source] for to, there in enumerate(plan) if source in there.picks}
            if wanted:
                refs = self._pool.call(run.worker, "give", token, list(wanted.values()), results=sent * len(wanted))
                given |= {(source, to): refs[k * sent : (k + 1) * sent] for k, to in enumerate(wanted)}
        width = len(leaves(self._dense)) if last else 0
        done, rows = [], []
        for to, (run, there) in enumerate(zip(self._runs, plan, strict=True)):
            exchange = GossipExchange(token, into, there.w, there.own, there.order, token == self._token, last)
            others = [ref for source in there.picks for ref in given[source, to]]
            results = 1 + (run.stop - run.start) * width
            first, *refs = self._pool.call(run.worker, "mix", exchange, *others, results=results)
            done.append(first)
            rows += [refs[k : k + width] for k in range(0, len(refs), width)] if last else []
        self._pool.get(done)
        return rows

    def _spread(self, token: int) -> float:
        """Distributed ``fedsim.messages.mixing.spread``, with the same summation order."""
        c = len(self._order)
        center = to_array(self._sum("center", token, np.full(c, 1 / c)))
        there = self._pool.ray.put(center)
        squares = self._by_id(self._ask("distances", lambda run: (token, there)))
        return root_mean(torch.from_numpy(squares))


def by_id(parts: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Concatenate values of the runs and reorder them by id."""
    values = np.concatenate(parts)
    placed = np.empty_like(values)
    placed[order] = values
    return placed


class _Neighbours(NamedTuple):
    """Senders of one run in a gossip step.

    Attributes:
        w: ``[b, k]`` its rows of W, restricted to the ``k`` nodes it receives from, by id.
        own: its own rows among the ``k``.
        order: ``[k]`` position of each of the ``k`` in the concatenation of own and received rows.
        picks: rows needed from other runs, by run number.
    """

    w: csr_array
    own: np.ndarray
    order: np.ndarray
    picks: dict[int, np.ndarray]
