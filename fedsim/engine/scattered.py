"""Shards of data too large for a second copy: samples stay where the data set has them, and batches are gathered."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import brightness
from fedsim.engine.local_work import Shards
from fedsim.tree import Samples, mapped
from fedsim.types import Batch


class Scattered(Shards):
    """Samples on the CPU in the order of the data set, which may be that of a memory-mapped file.

    Args:
        x, y: samples of the data set.
        order: ``[N]`` the sample at each row of the data sorted by client.
        offsets: ``[n + 1]`` first row of each client.
        dtype: of floating-point samples in a batch, and of pixels.
        pixels: ``x`` is bytes, of which batches are real numbers from 0 to 1.
    """

    in_memory = False

    def __init__(
        self, x: Samples, y: Samples, order: np.ndarray, offsets: np.ndarray, dtype: torch.dtype, pixels: bool = False
    ) -> None:
        super().__init__(x, y, offsets)
        self._order, self._dtype, self._pixels = order, dtype, pixels

    @property
    def x(self) -> Samples:
        """All inputs, sorted by client: a copy."""
        return self.span(0, len(self._order)).x

    @property
    def y(self) -> Samples:
        """All targets, sorted by client: a copy."""
        return self.span(0, len(self._order)).y

    def span(self, start: int, stop: int) -> Batch:
        """See ``Shards``."""
        return self.take(torch.arange(start, stop))

    def take(self, index: Tensor, weight: Tensor | None = None, key: Tensor | None = None) -> Batch:
        """See ``Shards``."""
        rows, form = torch.from_numpy(self._order[index.reshape(-1).numpy()]), index.shape

        def pick(t: Tensor) -> Tensor:
            found = t.index_select(0, rows).view(*form, *t.shape[1:])
            return found.to(self._dtype) if t.is_floating_point() else found

        x, y = mapped(pick, self._samples)
        return Batch(brightness(x, self._dtype) if self._pixels else x, y, weight, key)

    def runs(self, first: np.ndarray, lengths: np.ndarray) -> Batch | None:
        """None: there are no views of samples side by side."""
        return None
