"""The ledger of a run: bytes, paper bits and gradient evaluations per node, and bytes per link."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.arrays import distinct

NAMES = ("down", "up", "paper_bits", "gradient_evaluations")
"""Costs of a node, in the order of the rows of a ledger."""
EDGES = "edges.csv"
"""File of the bytes over each directed link of a finished run without a server."""
SPARSE = 10_000
"""Nodes up to which a state holds the costs of all."""


FEW = 4
"""Edges are few if there are less than one for so many nodes: then no pass over all nodes is made."""


class Charged(NamedTuple):
    """The edges that were charged last.

    Attributes:
        to, by: ``[E]`` receivers and senders.
        nodes: all of them, once.
        received, sent: ``[n]`` number of edges of each node; None for few edges.
        links: codes of all links of the ledger.
        places: ``[E]`` places of the edges among them.
    """

    to: np.ndarray
    by: np.ndarray
    nodes: np.ndarray
    received: np.ndarray | None
    sent: np.ndarray | None
    links: np.ndarray
    places: np.ndarray


class Touched(NamedTuple):
    """Costs of some nodes at a moment, and the bytes of the links: as they were, or what was added since."""

    ids: np.ndarray
    costs: np.ndarray
    links: np.ndarray
    link_bytes: np.ndarray | None = None
    places: np.ndarray | None = None
    size: int | np.ndarray = 0


class Ledger:
    """Cumulative cost of a run: per node the bytes received (``down``) and sent (``up``), the bits sent as papers count
    them (``paper_bits``) and per-sample gradient evaluations; and the bytes over every directed link between nodes.

    Whoever charges nodes says so before, by `touch`. So neither the totals nor going back to an earlier moment take a
    pass over all nodes.
    """

    def __init__(self, n: int) -> None:
        self._costs = np.zeros((len(NAMES), n), np.int64)
        self.down, self.up, self.paper_bits, self.gradient_evaluations = self._costs
        self.links = np.zeros(0, np.int64)                 # sorted codes n * to + by
        self.link_bytes = np.zeros(0, np.int64)
        self._last: Charged | None = None                  # as edges are often those of the round before
        self._settled = np.zeros(len(NAMES), np.int64)     # totals at the last `settle`
        self._touched: list[Touched] = []

    def touch(self, ids: np.ndarray) -> None:
        """Note the costs of some nodes before they are charged."""
        self._touched.append(Touched(ids, self._costs[:, ids], self.links))

    def charge_edges(
        self, to: np.ndarray, by: np.ndarray, size: int | np.ndarray, bits: int | np.ndarray = 0
    ) -> None:
        """Charge messages over the directed edges from ``by[k]`` to ``to[k]``.

        Args:
            to: ``[E]`` receivers.
            by: ``[E]`` senders.
            size: bytes of all messages, or of each.
            bits: paper bits likewise, of the senders.
        """
        last, links, link_bytes = self._charged(to, by), self.links, self.link_bytes
        before = Touched(last.nodes, self._costs[:, last.nodes], links, None, last.places, size)
        if last.links is not links:                        # the bytes are in a new array, and the old one stays
            new = np.setdiff1d(last.links, links, assume_unique=True)
            at = np.searchsorted(links, new)
            before = before._replace(link_bytes=link_bytes, places=None)
            self.links, self.link_bytes = last.links, np.insert(link_bytes, at, 0)
        self._touched.append(before)
        self._last = last
        for costs, ends, count, each in (
            (self.down, to, last.received, size), (self.up, by, last.sent, size), (self.paper_bits, by, last.sent, bits)
        ):
            if count is not None and np.ndim(each) == 0:
                costs += count * each
            else:
                np.add.at(costs, ends, each)
        np.add.at(self.link_bytes, last.places, size)

    def _charged(self, to: np.ndarray, by: np.ndarray) -> Charged:
        """These edges, which are often those of the last time."""
        n, last = len(self.down), self._last
        if last is not None and last.links is self.links:
            if last.to is to and last.by is by:
                return last
            if np.array_equal(last.to, to) and np.array_equal(last.by, by):
                return last
        codes, links = n * to.astype(np.int64) + by, self.links
        places = np.searchsorted(links, codes)
        if not len(links) or (links[np.minimum(places, len(links) - 1)] != codes).any():
            links = distinct(np.concatenate([links, codes]))
            places = np.searchsorted(links, codes)
        if FEW * len(to) < n:
            return Charged(to, by, distinct(np.concatenate([to, by])), None, None, links, places)
        received, sent = (np.bincount(ends, minlength=n) for ends in (to, by))
        return Charged(to, by, np.flatnonzero(received + sent), received, sent, links, places)

    def edges(self) -> np.ndarray:
        """Directed edges used so far as rows (sender, receiver, bytes), int64 ``[E, 3]``, sorted by the first two."""
        return edges_of(self.links, self.link_bytes, len(self.down))

    def by_node(self) -> dict[str, np.ndarray]:
        """Costs of every node by their recorded names, int64 ``[n]``."""
        return {
            "bytes_down": self.down,
            "bytes_up": self.up,
            "paper_bits": self.paper_bits,
            "gradient_evaluations": self.gradient_evaluations,
        }

    def totals(self) -> dict[str, int]:
        """Costs summed over nodes, by name."""
        return dict(zip(self.by_node(), self._totals().tolist(), strict=True))

    def _totals(self) -> np.ndarray:
        if not self._touched:
            return self._settled
        if sum(len(before.ids) for before in self._touched) >= len(self.down):
            whole: np.ndarray = self._costs.sum(1)
            return whole
        ids, costs = (np.concatenate(parts, -1) for parts in list(zip(*self._touched, strict=True))[:2])
        ids, first = np.unique(ids, return_index=True)
        total: np.ndarray = self._settled + (self._costs[:, ids] - costs[:, first]).sum(1)
        return total

    def settle(self) -> None:
        """Make the present costs those to which `undo` goes back."""
        self._settled = self._totals()
        self._touched.clear()

    def mark(self) -> int:
        """The present moment, for `undo`; valid until the next `settle`."""
        return len(self._touched)

    def undo(self, mark: int = 0) -> None:
        """Forget all costs since a `mark`, by default since the last `settle`."""
        while len(self._touched) > mark:
            before = self._touched.pop()
            self._costs[:, before.ids] = before.costs
            if before.link_bytes is not None:
                self.links, self.link_bytes = before.links, before.link_bytes
            elif before.places is not None:
                np.subtract.at(self.link_bytes, before.places, before.size)

    def state(self) -> dict[str, Tensor]:
        """State of the ledger as int64 tensors, which may share its memory.

        Of more than 10,000 nodes, those without costs are left out: ``nodes`` are the others.
        """
        costs, named = self._costs, {}
        if len(self.down) > SPARSE:
            nodes = np.flatnonzero(self._costs.any(0))
            costs, named = self._costs[:, nodes], {"nodes": nodes}
        named |= dict(zip(NAMES, costs, strict=True)) | {"links": self.links, "link_bytes": self.link_bytes}
        return {name: torch.from_numpy(array) for name, array in named.items()}

    def snapshot(self) -> dict[str, Tensor]:
        """Copy of ``state()``, unaffected by later charges."""
        return {name: tensor.clone() for name, tensor in self.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the ledger from a ``state()`` or ``snapshot()``."""
        nodes = state["nodes"].numpy() if "nodes" in state else slice(None)
        self._costs[:] = 0
        for row, name in zip(self._costs, NAMES, strict=True):
            row[nodes] = state[name].numpy()
        self.links, self.link_bytes = (state[name].numpy().copy() for name in ("links", "link_bytes"))
        self._settled, self._touched = self._costs.sum(1), []


def edges_of(links: np.ndarray, link_bytes: np.ndarray, n: int) -> np.ndarray:
    """See `Ledger.edges`; of the ``links`` and ``link_bytes [E]`` of the state of a ledger of ``n`` nodes."""
    to, by = np.divmod(links, n)
    order = np.lexsort((to, by))
    return np.stack([by, to, link_bytes], axis=1)[order]


def table_of(edges: np.ndarray) -> str:
    """Content of `EDGES`; empty without edges."""
    # one format of all rows: a tenth of the time of one for each
    return "from,to,bytes\n" + "%d,%d,%d\n" * len(edges) % tuple(edges.ravel().tolist()) if len(edges) else ""
