"""Shards of clients whose samples a function gives when they are read."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.data.by_client import ClientSource, Pair
from fedsim.data.dataset import Split
from fedsim.engine.local_work import Shards
from fedsim.errors import ConfigError
from fedsim.types import Batch

NOWHERE = (
    "the samples come from a function of the client, and are never all in memory, as this needs; use the backends loop"
    " or blocks, or a Dataset in memory"
)


class Sourced(Shards):
    """Samples of consecutive clients of a source.

    Args:
        source: of all clients.
        clients: the first one, and the one after the last.
        device, dtype: of the samples in a batch.
        holdout: numbers of samples ``[n]`` that all clients withhold, and the seed of their choice; None for none.
        withheld: whether these shards are what is withheld, and not the rest.
    """

    in_memory = False

    def __init__(
        self,
        source: ClientSource,
        clients: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
        holdout: tuple[np.ndarray, int] | None = None,
        withheld: bool = False,
    ) -> None:
        self._source, self._first, self._to = source, clients[0], (device, dtype)
        self._holdout, self._withheld = holdout, withheld
        some = slice(*clients)
        sizes = source.sizes[some]
        if holdout is not None:
            sizes = holdout[0][some] if withheld else sizes - holdout[0][some]
        super().__init__(None, None, np.r_[0, np.cumsum(sizes)])

    @property
    def x(self) -> NoReturn:
        """Nothing: there is no place with all samples."""
        raise ConfigError(NOWHERE)

    @property
    def y(self) -> NoReturn:
        """See `x`."""
        raise ConfigError(NOWHERE)

    def rows(self, node: int) -> Batch:
        """See ``Shards``."""
        return self._batch(*self._of(node))

    def span(self, start: int, stop: int) -> Batch:
        """See ``Shards``."""
        return self.take(torch.arange(start, stop))

    def take(self, index: Tensor, weight: Tensor | None = None, key: Tensor | None = None) -> Batch:
        """See ``Shards``."""
        rows, form = index.reshape(-1).cpu().numpy(), index.shape
        nodes = np.searchsorted(self.offsets, rows, "right") - 1
        order = np.argsort(nodes, kind="stable")           # those of one client side by side
        firsts = np.flatnonzero(np.diff(nodes[order], prepend=-1))
        parts: list[Pair] = []
        for some in np.split(order, firsts[1:]):
            node = int(nodes[some[0]])
            at = torch.from_numpy(rows[some] - self.offsets[node])
            x, y = self._of(node)
            parts.append((x[at], y[at]))
        back = torch.from_numpy(np.argsort(order))
        batch = self._batch(*(torch.cat(leaves)[back] for leaves in zip(*parts, strict=True)))
        x, y = (t.view(*form, *t.shape[1:]) for t in (batch.x, batch.y))
        return Batch(x, y, weight, key)

    def runs(self, first: np.ndarray, lengths: np.ndarray) -> Batch | None:
        """None: there are no views of samples side by side."""
        return None

    def _of(self, node: int) -> Pair:
        """Samples of a client as its source has them, without those that are withheld, or these alone."""
        client = node + self._first
        x, y = self._source.samples(client)
        if self._holdout is None:
            return x, y
        held, seed = self._holdout
        (chosen,) = withheld(seed, np.array([client]), np.array([len(x)]), held[[client]])
        if not self._withheld:
            chosen = np.setdiff1d(np.arange(len(x)), chosen, assume_unique=True)
        rows = torch.from_numpy(chosen)
        return x[rows], y[rows]

    def _batch(self, x: Tensor, y: Tensor) -> Batch:
        split: Any = Split(x, y, None, x.dtype == torch.uint8).to(*self._to)
        return Batch(split.x, split.y)


def withheld(seed: int, clients: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Places, in order, of the samples that clients withhold: ``counts [c]`` of their ``sizes [c]``."""
    orders = seeds.shuffles(seed, "holdout", 0, clients, sizes, np.ones(len(clients), np.int64))
    return [np.sort(order[0, :count]) for order, count in zip(orders, counts, strict=True)]
