"""Question: which rule learns most beside attackers, is Flag Aggregator more than a mean of unit vectors, what does
nearest-neighbour mixing gain on skewed data, and what can nodes do that have few neighbours?

Data: digits (images of 8 x 8 pixels; --data mnist for larger ones), a network with 32 hidden units, 2 paired seeds.
(flag) 15 clients on shuffled data, of which 1 to 3 are attackers, the gradient of 32 samples a round, 50 rounds; rules
under uniform noise, reversed messages (ten times) and ALIE. (mixing) The same with 3 attackers, Dirichlet(0.1) and
(10), and worker momentum 0.9. The server's step is 0.3 for every rule; --tune chooses it for each rule, f and skew, by
the worst accuracy over the attacks on samples that honest clients withhold, on another seed. (gossip) 16 nodes, two of
them attackers, 5 local steps, 30 rounds, DFedAvg with lr 0.1 on a ring, a torus and the exponential graph.

Run: python -m experiments.byzantine (3 minutes of one core, and 6 more with --tune; --part flag, mixing or gossip for
one of them; --quick: few rounds). Repeat the command to continue after an interruption.
Expected: the mean fails under noise and reversed messages; Flag Aggregator and the mean of unit vectors are close;
mixing helps most on skewed data; in gossip the mean fails on every graph, and rules hold where most neighbours are
honest.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import DFedAvg, FedAvg
from fedsim import (
    Data,
    DirichletPartitioner,
    Evaluation,
    Execution,
    Experiment,
    FixedSize,
    LocalWork,
    WorkerMomentum,
    run,
    sweep,
)
from fedsim.cli.byzantine import shown
from fedsim.cli.output import console
from fedsim.errors import RunError
from fedsim.models import MLP
from fedsim.report.compare import text_of
from fedsim.report.series import load_runs
from fedsim.report.statistics import estimate
from fedsim.robust import (
    ALIE,
    NNM,
    CoordinateMedian,
    FlagAggregator,
    Krum,
    Mean,
    MoNNA,
    MultiKrum,
    NormMean,
    SelfCenteredClipping,
    SignFlip,
    TrimmedMean,
    UniformNoise,
)
from fedsim.sweeps.byzantine import RobustGrid, run_grid
from topologies import Exponential, Ring, Static, Torus

P = 15
BASE = Experiment(
    FedAvg(lr=1.0, server_lr=0.3),                                        # one step: the message is the gradient
    partition=DirichletPartitioner(P, alpha=1000.0),
    model=MLP(hidden=(32,)),
    local=LocalWork(batch_size=32, steps=1),
    sampling=FixedSize(1.0),
    rounds=50,
    seeds=2,
    evaluation=Evaluation(every=50, clients_every=None),
    execution=Execution("blocks", block_size=P, threads=1),
)
ATTACKS = {"noise": UniformNoise(), "reversed": SignFlip(scale=10.0), "ALIE": ALIE()}


def quick(experiment: Experiment) -> Experiment:
    """A short version, to try the script."""
    return replace(experiment, rounds=4)


@dataclass(frozen=True)
class Beside:
    """Flag Aggregator, which notes the cosine of its result and that of the mean of unit vectors.

    Args:
        rule: the rule that is used.
    """

    rule: FlagAggregator = field(default_factory=FlagAggregator)

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """See ``fedsim.types.Rule``."""
        out, mean = self.rule(rows, weights), NormMean()(rows, weights)
        COSINES.append(float(torch.nn.functional.cosine_similarity(out, mean, 0)))
        return out


COSINES: list[float] = []


def flag(base: Experiment, steps: tuple[float, ...], folder: Path) -> None:
    """Part (a)."""
    rules = {
        "Mean": Mean(), "NormMean": NormMean(), "Flag": FlagAggregator(), "median": CoordinateMedian(),
        "Multi-Krum": MultiKrum(),
    }  # fmt: skip
    grid = RobustGrid(base, rules, ATTACKS, f=(1, 2, 3), lr=steps, step="server_lr")
    table = run_grid(grid, folder / "flag", 1, progress=False)
    for f in grid.f:
        console().print(shown(grid, table, f, None))
    for lam in (0.0, float(P)):
        for name, plain in ATTACKS.items():
            COSINES.clear()
            rule, attack = Beside(FlagAggregator(lam=lam)), replace(plain, share=3 / P)
            made = replace(base, seeds=1, aggregate=rule, attack=attack)
            run(made.with_execution(name=f"beside-{lam:g}-{name}"), root=folder, progress=False)
            of = np.array(COSINES)
            print(f"cosine of Flag Aggregator (lam = {lam:g}) and NormMean, f = 3, {name}:"
                  f" mean {of.mean():.4f}, least {of.min():.4f} of {len(of)} rounds")  # fmt: skip


def mixing(base: Experiment, steps: tuple[float, ...], folder: Path) -> None:
    """Part (b)."""
    plain = {"trimmed mean": TrimmedMean(), "Krum": Krum()}
    rules = {**plain, **{f"NNM, {name}": NNM(rule, f=1) for name, rule in plain.items()}}
    skewed = replace(base, uplink=WorkerMomentum(0.9))
    attacks = {name: ATTACKS[name] for name in ("reversed", "ALIE")}
    grid = RobustGrid(skewed, rules, attacks, f=(3,), alpha=(0.1, 10.0), lr=steps, step="server_lr")
    table = run_grid(grid, folder / "mixing", 1, progress=False)
    for alpha in grid.alpha:
        console().print(shown(grid, table, 3, alpha))


def gossip(base: Experiment, _: tuple[float, ...], folder: Path) -> None:
    """Part (c)."""
    rules: dict[str, Any] = {
        "mean by W": None, "trimmed mean": TrimmedMean(1), "MoNNA": MoNNA(1), "clipping": SelfCenteredClipping(1.0),
    }  # fmt: skip
    who = (0, 6)                                           # in the ring and the torus without a common neighbour
    attacks: dict[str, Any] = {"none": None, "reversed": SignFlip(ids=who, scale=10.0)}
    graphs = {"ring": Ring(), "torus": Torus(), "exponential": Exponential()}
    nodes = replace(
        base, algorithm=DFedAvg(lr=0.1), topology=Static(), partition=DirichletPartitioner(16, alpha=1.0),
        local=LocalWork(32, steps=5),
        rounds=base.rounds * 3 // 5, evaluation=Evaluation(every=base.rounds, clients_every=0),
        execution=Execution("blocks", block_size=16, threads=1),
    )  # fmt: skip
    points = {
        f"{graph}, {rule}, {attack}": replace(nodes, topology=Static(on), aggregate=by, attack=under)
        for graph, on in graphs.items() for rule, by in rules.items() for attack, under in attacks.items()
    }  # fmt: skip
    made = sweep(points, output=folder / "gossip", jobs=1, progress=False)
    print(f"| graph | rule | {' | '.join(attacks)} |\n|{'---|' * (2 + len(attacks))}")
    for graph in graphs:
        for rule in rules:
            cells = [text_of(_nodes(made, f"{graph}, {rule}, {attack}")) for attack in attacks]
            print(f"| {graph} | {rule} | {' | '.join(cells)} |")


def _nodes(made: Any, name: str) -> Any:
    """Mean accuracy of the honest nodes' own models; NaN where they diverged.

    Raises:
        RunError: a run failed for another reason.
    """
    reason = made.failures.get(name, "")
    if reason.startswith("DivergenceError"):
        return estimate([math.nan])
    if reason:
        raise RunError(f"{name}: {reason}")
    (found,) = load_runs([made.path / name], "nodes/test", "accuracy_mean")
    return estimate([float(series.value[-1]) for series in found.seeds.values()])


PARTS = {"flag": flag, "mixing": mixing, "gossip": gossip}


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser("python -m experiments.byzantine", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="one part; all by default")
    parser.add_argument("--root", type=Path, default=Path("runs/byzantine-experiment"), help="folder of the runs")
    parser.add_argument("--data", default="digits", help="data set of images")
    parser.add_argument("--tune", action="store_true", help="choose the server's step on withheld samples")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    options = parser.parse_args()
    for part in [PARTS[options.part]] if options.part else PARTS.values():
        base = replace(BASE, data=Data(options.data))
        part(quick(base) if options.quick else base, (0.1, 0.3, 1.0) if options.tune else (), options.root)


if __name__ == "__main__":
    main()
