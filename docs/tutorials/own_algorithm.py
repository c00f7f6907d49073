# %% [markdown]
# # An algorithm of your own
#
# An algorithm is a frozen dataclass: its fields are its hyperparameters, `init` makes the first state, `round` the next
# one, and a client function says what a client does. A model is one flat vector `x`. Here is FedAvg with server
# momentum (Hsu et al. 2019): the server keeps a velocity v and moves by it,
#
#     v <- beta v + mean_i (x - y_i),    x <- x - v.

# %%
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from rich import print

from algorithms import FedAvg
from fedsim import Batch, Clients, Experiment, Local, LocalWork, Vector, compare, render, run


class State(NamedTuple):
    x: Vector                                    # the server's model, [d]
    v: Vector                                    # its velocity, [d]


@dataclass(frozen=True)
class FedAvgM:
    """FedAvg with server momentum.

    Args:
        lr: local step size.
        beta: server momentum.
    """

    lr: float = 0.1
    beta: float = 0.5

    def init(self, x: Vector, clients: Clients) -> State:
        return State(x, torch.zeros_like(x))

    def round(self, s: State, clients: Clients) -> State:
        y = clients.each(self.client, s.x)       # x goes to every client of the round, y comes back: both are charged
        v = self.beta * s.v + (s.x - clients.mean(y))
        return State(s.x - v, v)

    def client(self, local: Local, x: Vector) -> Vector:
        def step(y: Vector, batch: Batch, eta: Vector) -> Vector:
            return local.descend(y, local.grad(y, batch), eta)

        return local.fold(step, x, self.lr * local.decay)


# %% [markdown]
# `local.fold` iterates over the minibatches of the round. Every tensor that a step reads is one of its arguments, so
# the engine can run many clients in one call. The same object runs client by client, in blocks, on Ray actors and on
# real machines.

# %%
base = Experiment(FedAvgM(lr=0.3), local=LocalWork(batch_size=16), rounds=20)
runs = [run(experiment, progress=False) for experiment in (base, replace(base, algorithm=FedAvg(lr=0.3)))]
print(render(compare(runs, labels={str(runs[0].path): "FedAvgM"})))

# %% [markdown]
# Two checks are worth their two lines. Without momentum it must equal FedAvg, and both backends must agree, in float64
# up to rounding.

# %%
def last_loss(algorithm: object, backend: str = "loop", dtype: str = "float64") -> float:
    experiment = Experiment(algorithm, local=LocalWork(batch_size=16), rounds=3, dtype=dtype)
    made = run(experiment.with_execution(backend=backend), progress=False)
    return compare([made], metric="loss").runs[0].final.mean


assert abs(last_loss(FedAvgM(beta=0.0)) - last_loss(FedAvg())) < 1e-12
assert abs(last_loss(FedAvgM()) - last_loss(FedAvgM(), "blocks")) < 1e-12

# %% [markdown]
# Saved as `my_module.py`, it works on the command line too: `fedsim run --algorithm my_module.FedAvgM --algorithm.beta
# 0.9`. A memory that stays with each client is `Kept`; see [writing an algorithm](../algorithm.md). Smaller parts, such
# as a compressor or a metric, take [a few lines](../own.md).
