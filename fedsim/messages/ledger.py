"""The ledger of a run: bytes, paper bits and gradient evaluations of every node, bytes over every link."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Ledger:
    """Cumulative cost of a run, per node: bytes received (down), bytes sent (up), the bits that papers count of what is
    sent up (``paper_bits``), per-sample gradient evaluations; and the bytes over every directed link between nodes.
    """

    def __init__(self, n: int) -> None:
        self.down = np.zeros(n, np.int64)
        self.up = np.zeros(n, np.int64)
        self.paper_bits = np.zeros(n, np.int64)
        self.gradient_evaluations = np.zeros(n, np.int64)
        self.links = np.zeros(0, np.int64)                 # sorted numbers n * to + by
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
        """Every directed edge that was ever used: who spoke, who heard, bytes; int64 ``[E, 3]``, by the first two."""
        to, by = np.divmod(self.links, len(self.down))
        order = np.lexsort((to, by))
        return np.stack([by, to, self.link_bytes], axis=1)[order]

    def by_node(self) -> dict[str, np.ndarray]:
        """Costs of every node, by the names under which they are recorded, int64 ``[n]``."""
        return {
            "bytes_down": self.down,
            "bytes_up": self.up,
            "paper_bits": self.paper_bits,
            "gradient_evaluations": self.gradient_evaluations,
        }

    def totals(self) -> dict[str, int]:
        """Their sums over nodes."""
        return {name: int(each.sum()) for name, each in self.by_node().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything to restore the ledger from, as int64 tensors."""
        return {name: torch.from_numpy(array) for name, array in vars(self).items()}

    def snapshot(self) -> dict[str, Tensor]:
        """The same, as it is now: what is charged later does not change it."""
        return {name: tensor.clone() for name, tensor in self.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Set the ledger to what ``state()`` or ``snapshot()`` gave."""
        for name in vars(self):
            setattr(self, name, state[name].numpy().copy())
