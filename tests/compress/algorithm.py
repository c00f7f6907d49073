"""Gradient descent with compressed gradients and no error feedback: the least that a compressor serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from fedsim import Clients, Compressor, Local, Packed, Vector
from fedsim.compress import TopK


class CompressedState(NamedTuple):
    """The model ``[d]``."""

    x: Vector


@dataclass(frozen=True)
class CompressedGradient:
    """x <- x - lr mean_i C(grad f_i(x)), with x sent compressed too if ``both``.

    Args:
        lr: step size.
        compressor: what gradients are sent through.
        both: send also the server's last step compressed.
    """

    lr: float = 0.1
    compressor: Compressor = field(default_factory=TopK)
    both: bool = False

    def init(self, x: Vector, clients: Clients) -> CompressedState:
        """See ``fedsim.algorithm.Algorithm``."""
        return CompressedState(x)

    def round(self, s: CompressedState, clients: Clients) -> CompressedState:
        """See ``fedsim.algorithm.Algorithm``."""
        if self.both:
            sent = clients.each(self.read, self.compressor.compress(s.x, clients))
        else:
            sent = clients.each(self.client, s.x)
        return CompressedState(s.x - self.lr * clients.mean(sent))

    def client(self, local: Local, x: Vector) -> Packed:
        """The gradient at ``x``, compressed."""
        return self.compressor.compress(local.grad(x), local)

    def read(self, local: Local, x: Packed) -> Packed:
        """The gradient at what the message says, compressed."""
        return self.client(local, x.unpack())
