"""A round's work, as benchmarks of rounds share it: a model, and clients with random images of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from fedsim.engine.federation import Federation
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.model import Model
from fedsim.models import Architecture
from fedsim.models.losses import cross_entropy

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


@dataclass(frozen=True)
class Work:
    """A cohort of ``cohort`` out of ``clients`` clients makes one epoch over ``samples`` samples each.

    Args:
        model: with ten outputs.
        clients, cohort: how many there are, and how many take part in a round.
        samples: of each client.
        batch_size: samples in a minibatch.
        shape: of an image.
    """

    model: Architecture
    clients: int
    cohort: int
    samples: int
    batch_size: int = 10
    shape: tuple[int, ...] = MNIST

    @cached_property
    def shards(self) -> Shards:
        """The same random images and labels for everybody who asks, divided evenly."""
        generator, n = torch.Generator().manual_seed(0), self.clients * self.samples
        x = torch.randn(n, *self.shape, generator=generator)
        y = torch.randint(0, 10, (n,), generator=generator)
        return Shards(x, y, np.arange(self.clients + 1) * self.samples)

    @cached_property
    def ids(self) -> np.ndarray:
        """One cohort, spread evenly."""
        return np.arange(self.cohort) * (self.clients // self.cohort)

    def module(self) -> nn.Module:
        """The model with its first parameters, the same every time."""
        torch.manual_seed(1)
        return self.model.build(self.shape, 10)

    def federation(self) -> Federation:
        """Of all clients, in a loop until another backend is set."""
        return Federation(Model(self.module(), cross_entropy), self.shards, LocalWork(self.batch_size), 0, Loop())
