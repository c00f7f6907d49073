"""Messages received through Flower, and gossip relayed by the server, since Flower's nodes cannot reach each other. The
server forwards messages and retains none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedsim.backends.flower.server.memories import Handle
from fedsim.messages import wire
from fedsim.messages.stacked import Stacked, refuse_packed
from fedsim.tree import leaves, tree_map, unpacked

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Done(NamedTuple):
    """Validated response of a client to one call.

    Attributes:
        data: its message as bytes; empty if it sent none.
        tree: the message.
        memory: handles of its new memories, or None.
        message: handle of the message if the client retains it for mixing.
        evaluations: per-sample gradients.
        known: handle of the value that the client computed from its message.
    """

    data: bytes
    tree: Any
    memory: Any
    message: Handle | None
    evaluations: int
    known: Handle | None = None


Relay: TypeAlias = "Callable[[np.ndarray, int, csr_array, list[Done], bool], list[Done]]"


class Relayed:
    """``Messages`` held by the server as bytes.

    Args:
        relay: performs one gossip step, given clients, round, W, their responses, and True for the last step.
        ids: ``[c]`` clients.
        round: of the messages.
        done: response of each client.
    """

    remote = True                                          # nodes mix, by W or by the rule of the experiment

    def __init__(self, relay: Relay, ids: np.ndarray, round: int, done: list[Done]) -> None:
        self._relay, self._ids, self._round, self._done = relay, ids, round, done

    def sizes(self) -> np.ndarray:
        """See ``Messages``."""
        return np.array([len(done.data) for done in self._done], np.int64)

    def paper_bits(self) -> np.ndarray:
        """See ``Messages``."""
        return np.array([wire.paper_bits(done.tree) for done in self._done], np.int64)

    def finite(self) -> np.ndarray:
        """See ``Messages``: messages with NaN or infinity are refused on arrival."""
        return np.ones(len(self._done), bool)

    def stacked(self) -> Any:
        """See ``Messages``; compressed vectors of different lengths are unpacked."""
        trees = [done.tree for done in self._done]
        shapes = {tuple(leaf.shape for leaf in leaves(tree)) for tree in trees}
        return tree_map(lambda *rows: torch.stack(rows), *(trees if len(shapes) == 1 else map(unpacked, trees)))

    def only(self, positions: np.ndarray) -> Relayed:
        """See ``Messages``."""
        return Relayed(self._relay, self._ids[positions], self._round, [self._done[k] for k in positions])

    def mean(self, w: Tensor) -> Any:
        """See ``Messages``."""
        return Stacked(self._dense()).mean(w)

    def mix(self, w: csr_array, steps: int, measure: bool) -> tuple[dict[int, Any], float | None]:
        """See ``Messages``: every client receives its neighbours' messages and keeps the weighted sum."""
        refuse_packed(self._done[0].tree, steps)           # all have the same form
        contraction = Stacked(leaves(self._dense())[0]).mix(w, steps, True)[1] if measure else None
        now = self._done
        for step in range(1, steps + 1):
            now = self._relay(self._ids, self._round, w, now, step == steps)
        return {at: done.memory for at, done in enumerate(now)}, contraction

    def _dense(self) -> Any:
        return tree_map(lambda *rows: torch.stack(rows), *(unpacked(done.tree) for done in self._done))


def neighbours(w: csr_array, i: int) -> tuple[list[int], list[float], int]:
    """Neighbours in row ``i`` of W in ascending order, including ``i``; their weights; and the position of ``i``."""
    row = slice(w.indptr[i], w.indptr[i + 1])
    weights = dict(zip(w.indices[row].tolist(), w.data[row].tolist(), strict=True))
    weights.setdefault(i, 0.0)
    order = sorted(weights)
    return order, [weights[j] for j in order], order.index(i)
