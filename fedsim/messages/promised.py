"""Messages that are not here yet: they are computed, or waited for, when first read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedsim.messages.stacked import Stacked

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Promised:
    """``fedsim.types.Messages`` of which nothing but the sizes is known yet.

    Args:
        sizes: ``[c]`` bytes of each.
        receive: computes the messages or waits for them, and returns them, all of them finite.
    """

    def __init__(self, sizes: np.ndarray, receive: Callable[[], Stacked]) -> None:
        self._sizes, self._receive = sizes, receive

    @cached_property
    def _here(self) -> Stacked:
        return self._receive()

    def sizes(self) -> np.ndarray:
        """See ``Messages``."""
        return self._sizes

    def finite(self) -> np.ndarray:
        """True for all, as ``receive`` checks them."""
        return np.ones(len(self._sizes), bool)

    def paper_bits(self) -> np.ndarray:
        """See ``Messages``."""
        return self._here.paper_bits()

    def stacked(self) -> Any:
        """See ``Messages``."""
        return self._here.stacked()

    def only(self, positions: np.ndarray) -> Stacked:
        """See ``Messages``."""
        return self._here.only(positions)

    def mean(self, w: Tensor) -> Any:
        """See ``Messages``."""
        return self._here.mean(w)

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[Mapping[int, Any], float | None]:
        """See ``Messages``."""
        return self._here.mix(w, steps, measure)
