"""The ledger of a run: bytes, paper bits and gradient evaluations per node, and bytes per link."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NAMES = ("down", "up", "paper_bits", "gradient_evaluations")
"""Costs of a node, in the order of the rows of a ledger."""
EDGES = "edges.csv"
"""File of the bytes over each directed link of a finished run without a server."""
SPARSE = 10_000
"""Nodes up to which a state holds the costs of all."""


class Charged(NamedTuple):
    """The edges that were charged last: their codes, nodes, the codes of all links, and the places among them."""

    codes: np.ndarray
    nodes: np.ndarray
    links: np.ndarray
    places: np.ndarray


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
        self._touched: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]] = []

    def touch(self, ids: np.ndarray, links: bool = False) -> None:
        """Note the costs of some nodes, and of the links, before they are charged."""
        link_bytes = self.link_bytes.copy() if links else None
        self._touched.append((ids, self._costs[:, ids], self.links, link_bytes))

    def charge_edges(self, to: np.ndarray, by: np.ndarray, size: int | np.ndarray) -> None:
        """Charge messages of ``size`` bytes over the directed edges from ``by[k]`` to ``to[k]``."""
        codes = len(self.down) * to.astype(np.int64) + by
        same = self._last is not None and self._last.links is self.links and np.array_equal(self._last.codes, codes)
        nodes = self._last.nodes if same and self._last is not None else np.union1d(to, by)
        self.touch(nodes, links=True)
        np.add.at(self.down, to, size)
        np.add.at(self.up, by, size)
        if not same:
            new = np.setdiff1d(codes, self.links)
            at = np.searchsorted(self.links, new)
            self.links, self.link_bytes = np.insert(self.links, at, new), np.insert(self.link_bytes, at, 0)
            self._last = Charged(codes, nodes, self.links, np.searchsorted(self.links, codes))
        assert self._last is not None
        np.add.at(self.link_bytes, self._last.places, size)

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
            ids, costs, links, link_bytes = self._touched.pop()
            self._costs[:, ids] = costs
            if link_bytes is not None:
                self.links, self.link_bytes = links, link_bytes

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
    lines = [f"{by},{to},{size}\n" for by, to, size in edges.tolist()]
    return "".join(["from,to,bytes\n", *lines]) if lines else ""
