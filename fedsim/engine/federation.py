"""A federation: model, samples, local work and weights, which stay the same from round to round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.machine import keep_freed_memory
from fedsim.engine.memory import Memory, OnDevice
from fedsim.engine.model import Model
from fedsim.errors import ConfigError
from fedsim.gossip import Topology, alike
from fedsim.messages.ledger import Ledger
from fedsim.types import Kept, Messages, Sent

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Backend(Protocol):
    """How a client function reaches the nodes."""

    def each(
        self, federation: Federation, fn: Callable[..., Any], ids: np.ndarray, round: int, down: Any,
        mine: Kept[Any] | None,
    ) -> tuple[Messages[Any], dict[int, Any]]:  # fmt: skip
        """Run ``fn`` on every node: the messages in the order of ``ids``, and each node's new memory."""


@dataclass
class Federation:
    """What stays the same from round to round.

    Args:
        model: the model and its objective.
        shards: every client's samples.
        work: the local work of a round.
        seed: root of all randomness.
        backend: how client code runs.
        weights: ``[n]`` weights p_i of the clients in the objective sum_i p_i f_i; uniform by default.
        cohort_size: expected number of clients in a round; everybody by default.
        topology: who talks to whom, for methods without a server.
        memory: where clients' memories live between rounds.
        decay: round number to learning-rate factor.
    """

    model: Model
    shards: Shards
    work: LocalWork
    seed: int
    backend: Backend
    weights: np.ndarray | None = None
    cohort_size: float = 0.0
    decay: Callable[[int], float] = lambda round: 1.0
    topology: Topology | None = None
    memory: Memory = field(default_factory=OnDevice)
    ledger: Ledger = field(init=False)
    p: np.ndarray = field(init=False)
    delivered: WeakSet[Sent[Any]] = field(init=False, default_factory=WeakSet)   # an upload is paid once
    measure: bool = field(init=False)                      # the contraction of the consensus distance by mixing
    contraction: float | None = field(init=False, default=None)   # as last measured
    contraction_bound: float | None = field(init=False, default=None)
    _bound: tuple[csr_array, float | None] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        n = self.shards.n
        weights = np.ones(n) if self.weights is None else np.asarray(self.weights, np.float64)
        if weights.shape != (n,) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ConfigError(f"weights are {self.weights!r:.80}; expected a finite number above 0 for each of {n}")
        self.p = weights / weights.sum()
        self.measure = alike(self.p)                       # else what contracts is not the plain mean's distance
        self.cohort_size = self.cohort_size or float(n)
        self.ledger = Ledger(n)
        if self.model.device.type == "cpu":
            keep_freed_memory()

    def bound(self, w: csr_array) -> float | None:
        """What one exchange by W leaves of the consensus distance at most; computed once where W does not change."""
        from topologies.spectrum import contraction_bound

        if self._bound is None or self._bound[0] is not w:
            self._bound = w, contraction_bound(w)
        return self._bound[1]

    def factor(self, round: int) -> Tensor:
        """The learning-rate factor of a round as a 0-dim tensor."""
        return torch.tensor(self.decay(round), dtype=self.model.dtype, device=self.model.device)
