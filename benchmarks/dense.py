"""A round of dense networks in a block, beside stacks of clients written by hand and beside ``torch.vmap``.

    python -m benchmarks.dense

FedAvg, ten clients with 600 random images each, minibatches of 10, one epoch, float32. Rounds take turns: of stacks
written by hand for 784-200-200-10 with its update fused; of fedsim's MLP of that size; of the same layers as a class of
one's own; and of such a class with LayerNorm and a residual sum, layer by layer and under ``torch.vmap``. The least and
the median processor time of a round are printed, and their ratios to the first of each group.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithms import FedAvg
from benchmarks.work import Work
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.local_work import minibatches
from fedsim.models import MLP

CLIENTS, LR = 10, 0.1


class Own(nn.Module):
    """The MLP as somebody writes it."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 200), nn.Linear(200, 200), nn.Linear(200, 10)
        self.norm = nn.LayerNorm(200) if normed else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x.flatten(1)))
        h = F.relu(self.fc2(h)) if self.norm is None else h + F.relu(self.fc2(self.norm(h)))
        out: Tensor = self.fc3(h)
        return out


@dataclass(frozen=True)
class Built:
    """An architecture of one's own class."""

    normed: bool

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """See ``Architecture.build``."""
        return Own(self.normed)


def by_fedsim(work: Work, layered: bool = True) -> Callable[[], object]:
    """A round in one block of all clients."""
    fed, method = replace(work.federation(), backend=Blocks(CLIENTS)), FedAvg(lr=LR)
    if not layered:
        fed.model.layered = None
    state = method.init(fed.model.vector(), cohort(fed, 0))
    return lambda: method.round(state, cohort(fed, 1))


def by_hand(work: Work) -> Callable[[], Tensor]:
    """The same round, written for this network alone."""
    fed = work.federation()
    x, y, start = fed.shards.x.flatten(1), fed.shards.y, [p.detach() for p in fed.model.parameters]

    def round() -> Tensor:
        plan, *_ = minibatches(fed.work, fed.shards, 0, 1, work.ids).stacked(work.ids)
        w = [p.expand(CLIENTS, *p.shape).clone() for p in start]
        for index in torch.from_numpy(plan).unbind(1):
            step(w, x[index], y[index])
        return torch.cat([p.flatten(1) for p in w], 1).mean(0)

    return round


def step(w: list[Tensor], x: Tensor, y: Tensor) -> None:
    """One step of SGD of all clients, in place."""
    given = [x]
    for i in range(0, len(w), 2):
        z = torch.baddbmm(w[i + 1].unsqueeze(1), given[-1], w[i].mT)
        given.append(z.relu_() if i < len(w) - 2 else z)
    delta = torch.softmax(given.pop(), 2)
    target = y.unsqueeze(2)
    delta.scatter_(2, target, delta.gather(2, target) - 1).div_(y.shape[1])
    for i in reversed(range(0, len(w), 2)):
        h = given.pop()
        before = torch.ops.aten.threshold_backward(torch.bmm(delta, w[i]), h, 0) if i else delta
        w[i].baddbmm_(delta.mT, h, alpha=-LR)
        w[i + 1].sub_(delta.sum(1), alpha=LR)
        delta = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help="rounds of each; 20 by default")
    parser.add_argument("--threads", type=int, default=1, help="threads; 1 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    works = {name: Work(model, CLIENTS, CLIENTS, 600) for name, model in (("mlp", MLP()), ("own", Built(False)))}
    normed = Work(Built(True), CLIENTS, CLIENTS, 600)
    groups: list[dict[str, Callable[[], object]]] = [
        {"by hand": by_hand(works["mlp"]), "MLP": by_fedsim(works["mlp"]), "own class": by_fedsim(works["own"])},
        {"LayerNorm, layer by layer": by_fedsim(normed), "LayerNorm under vmap": by_fedsim(normed, False)},
    ]
    seconds: dict[str, list[float]] = {name: [] for group in groups for name in group}
    for turn in range(arguments.turns + 1):                # the first rounds record
        for group in groups:
            for name, run in group.items():
                start = time.process_time()
                run()
                seconds[name] += [time.process_time() - start] * (turn > 0)
    for group in groups:
        base = seconds[next(iter(group))]
        for name in group:
            each = seconds[name]
            ratios = f"{min(each) / min(base):.2f} (median {median(each) / median(base):.2f})"
            print(f"{name:26} {min(each) * 1e3:7.1f} ms   {ratios}", flush=True)


if __name__ == "__main__":
    main()
