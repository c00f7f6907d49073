"""Cost of seeded dropout: a local step of models with dropout against one of the same models without.

    python -m benchmarks.dropout

FedAvg on 25 clients, 32 random samples each in every step, float32, in the loop and in one block of all clients: a
perceptron 784-200-10 with one Dropout, the same with a GELU (which runs under ``torch.vmap``), and an encoder layer of
width 32 on 28 tokens, which draws four times. Rounds with and without dropout take turns; the least processor time of a
step is printed, and its ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from algorithms import FedAvg
from benchmarks.work import Work
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.federation import Backend
from fedsim.engine.loop import Loop

CLIENTS, BATCH = 25, 32


@dataclass(frozen=True)
class Built:
    """An architecture by a function of p."""

    make: Callable[[float], nn.Module]
    p: float

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """See ``Architecture.build``."""
        return self.make(self.p)


def perceptron(activation: nn.Module, p: float) -> nn.Module:
    """784-200-10 with dropout of the hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), activation, nn.Dropout(p), nn.Linear(200, 10))


def encoder(p: float) -> nn.Module:
    """Rows of an image as tokens."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, p, batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), nn.Linear(28, 32), layer, nn.Flatten(), nn.Linear(28 * 32, 10))


MODELS: dict[str, Callable[[float], nn.Module]] = {
    "perceptron": lambda p: perceptron(nn.ReLU(), p),
    "perceptron, GELU": lambda p: perceptron(nn.GELU(), p),
    "encoder layer": encoder,
}


def least(make: Callable[[float], nn.Module], backend: Backend, steps: int, turns: int) -> list[float]:
    """Least processor seconds of a step without and with dropout."""
    feds = [
        replace(Work(Built(make, p), CLIENTS, CLIENTS, BATCH * steps, BATCH).federation(), backend=backend)
        for p in (0.0, 0.5)
    ]
    best, method = [float("inf")] * 2, FedAvg(0.001)
    states = [method.init(fed.model.vector(), cohort(fed, 0)) for fed in feds]
    for turn in range(turns + 1):                          # the first one records
        for i, fed in enumerate(feds):
            start = time.process_time()
            method.round(states[i], cohort(fed, 1))
            best[i] = min(best[i], (time.process_time() - start) / steps if turn else best[i])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="rounds of each; 10 by default")
    parser.add_argument("--steps", type=int, default=5, help="local steps in a round; 5 by default")
    parser.add_argument("--threads", type=int, default=1, help="threads; 1 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, make in MODELS.items():
        for backend in (Blocks(CLIENTS), Loop()):
            without, dropped = least(make, backend, arguments.steps, arguments.turns)
            where = type(backend).__name__
            print(f"{name:18} {where:6} {without * 1e3:7.2f} {dropped * 1e3:7.2f} ms a step   {dropped / without:.2f}")


if __name__ == "__main__":
    main()
