"""The ledger of a run: bytes, paper bits and gradient evaluations per node, and bytes per link."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Ledger:
    """Cumulative cost of a run: per node the bytes received (``down``) and sent (``up``), the bits sent as papers count
    them (``paper_bits``) and per-sample gradient evaluations; and the bytes over every directed link between nodes.
    """

    def __init__(self, n: int) -> None:
        self.down = np.zeros(n, np.int64)
        self.up = np.zeros(n, np.int64)
        self.paper_bits = np.zeros(n, np.int64)
        self.gradient_evaluations = np.zeros(n, np.int64)
        self.links = np.zeros(0, np.int64)                 # sorted codes n * to + by
        self.link_bytes = np.zeros(0, np.int64)

    def charge_edges(self, to: np.ndarray, by: np.ndarray, size: int | np.ndarray) -> None:
        """Charge messages of ``size`` bytes over the directed edges from ``by[k]`` to ``to[k]``."""
        np.add.at(self.down, to, size)
        np.add.at(self.up, by, size)
        links, which = np.unique(len(self.down) * to.astype(np.int64) + by, return_inverse=True)
        new = links[~np.isin(links, self.links)]
        at = np.searchsorted(self.links, new)
        self.links, self.link_bytes = np.insert(self.links, at, new), np.insert(self.link_bytes, at, 0)
        np.add.at(self.link_bytes, np.searchsorted(self.links, links)[which], size)

    def edges(self) -> np.ndarray:
        """Directed edges used so far as rows (sender, receiver, bytes), int64 ``[E, 3]``, sorted by the first two."""
        to, by = np.divmod(self.links, len(self.down))
        order = np.lexsort((to, by))
        return np.stack([by, to, self.link_bytes], axis=1)[order]

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
        return {name: int(each.sum()) for name, each in self.by_node().items()}

    def state(self) -> dict[str, Tensor]:
        """State of the ledger as int64 tensors, which share its memory."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}

    def snapshot(self) -> dict[str, Tensor]:
        """Copy of ``state()``, unaffected by later charges."""
        return {name: tensor.clone() for name, tensor in self.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the ledger from a ``state()`` or ``snapshot()``."""
        for name in vars(self):
            setattr(self, name, state[name].numpy().copy())
