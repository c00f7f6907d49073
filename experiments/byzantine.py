"""Question: which rule learns most beside attackers, is Flag Aggregator more than a mean of unit vectors, what does
nearest-neighbour mixing gain on skewed data, and what can nodes do that have few neighbours?

Data: MNIST, a network with 32 hidden units, 3 paired seeds. (flag) 15 clients on shuffled data, of which 1 to 3 are
attackers, the gradient of 32 samples a round, 50 rounds; rules under uniform noise, reversed messages (ten times) and
ALIE (z = 1.5). (mixing) The same with 3 attackers, Dirichlet(0.1) and (10), and worker momentum 0.9. (gossip) 16 nodes,
two of them attackers, DFedAvg with 5 local steps, 20 rounds, on a ring, a torus and the exponential graph; f of the
rules is the largest number of attackers that a node hears.
Every rule has its own step size: the one with the best worst accuracy over the attacks on samples that honest clients
withhold, on another seed; of (0.1, 0.3, 1) with 3 attackers and for each skew in (flag) and (mixing), of (0.1, 0.3) for
each graph in (gossip).

Run: python -m experiments.byzantine (an hour beside much other work; --part flag, mixing or gossip for one of them;
--quick: digits and few rounds). Repeat the command to continue after an interruption. The folder holds a table and a
picture of each part.
Expected: the mean fails under noise and reversed messages; Flag Aggregator and the mean of unit vectors are close;
mixing helps most on skewed data; in gossip the mean fails on every graph, and rules hold where most neighbours are
honest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import DFedAvg, FedAvg
from experiments.pages import intervals, markdown
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
from fedsim.errors import RunError
from fedsim.models import MLP
from fedsim.report.compare import text_of
from fedsim.report.series import load_runs
from fedsim.report.statistics import Estimate, estimate
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
    FedAvg(lr=1.0),                                        # one step: the message is the gradient
    data=Data("mnist"),
    partition=DirichletPartitioner(P, alpha=1000.0),
    model=MLP(hidden=(32,)),
    local=LocalWork(batch_size=32, steps=1),
    sampling=FixedSize(1.0),
    rounds=50,
    seeds=3,
    evaluation=Evaluation(every=50, clients_every=None),
    execution=Execution("blocks", block_size=P, threads=1),
)
STEPS, LOCAL_STEPS = (0.1, 0.3, 1.0), (0.1, 0.3)
"""Step sizes of the server, and of nodes without one."""
ATTACKS = {"noise": UniformNoise(), "reversed": SignFlip(scale=10.0), "ALIE": ALIE(z=1.5)}

Cells = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""Accuracy by panel, rule, and what is along the axis."""


def quick(experiment: Experiment) -> Experiment:
    """A short version, to try the script."""
    return replace(experiment, data=Data("digits"), rounds=4, seeds=2)


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


def flag(base: Experiment, folder: Path) -> Cells:
    """Part (a): accuracy by attack, rule and f, and the worst over the attacks."""
    rules = {
        "mean": Mean(), "norm-mean": NormMean(), "Flag Aggregator": FlagAggregator(), "median": CoordinateMedian(),
        "Multi-Krum": MultiKrum(),
    }  # fmt: skip
    grid = RobustGrid(base, rules, ATTACKS, f=(3,), lr=STEPS, step="server_lr")
    most = run_grid(grid, folder / "f=3", 1, progress=False)
    steps = {rule: lr for (rule, *_), lr in most.lr.items()}
    _print_steps(steps)
    found, worst = dict(most.accuracy), dict(most.worst)
    for rule, lr in steps.items():
        fewer = replace(grid, rules={rule: rules[rule]}, f=(1, 2), lr=(lr,))
        table = run_grid(fewer, folder / rule, 1, progress=False)
        found |= table.accuracy
        worst |= table.worst
    _print_cosines(base, folder)
    by_attack = {
        attack: {rule: {f"f = {f}": found[rule, attack, f, None] for f in (1, 2, 3)} for rule in rules}
        for attack in ATTACKS
    }
    least = {rule: {f"f = {f}": worst[rule, f, None][1] for f in (1, 2, 3)} for rule in rules}
    return {"worst of the three": least, **by_attack}


def _print_cosines(base: Experiment, folder: Path) -> None:
    """Print how near Flag Aggregator is to the mean of unit vectors, for f = 3 and one step."""
    for lam in (0.0, float(P)):
        for name, plain in ATTACKS.items():
            COSINES.clear()
            rule, attack = Beside(FlagAggregator(lam=lam)), replace(plain, share=3 / P)
            algorithm = replace(base.algorithm, server_lr=STEPS[1])   # type: ignore[type-var]
            made = replace(base, algorithm=algorithm, seeds=1, aggregate=rule, attack=attack)
            run(made.with_execution(name=f"beside-{lam:g}-{name}"), root=folder, progress=False)
            of = np.array(COSINES)
            print(f"cosine of Flag Aggregator (lam = {lam:g}) and norm-mean, f = 3, {name}:"
                  f" mean {of.mean():.4f}, least {of.min():.4f} of {len(of)} rounds")  # fmt: skip


def mixing(base: Experiment, folder: Path) -> Cells:
    """Part (b): accuracy by skew, rule and attack."""
    plain = {"trimmed mean": TrimmedMean(), "Krum": Krum()}
    rules = {**plain, **{f"NNM, {name}": NNM(rule, f=1) for name, rule in plain.items()}}
    skewed = replace(base, uplink=WorkerMomentum(0.9))
    attacks = {name: ATTACKS[name] for name in ("reversed", "ALIE")}
    grid = RobustGrid(skewed, rules, attacks, f=(3,), alpha=(0.1, 10.0), lr=STEPS, step="server_lr")
    table = run_grid(grid, folder, 1, progress=False)
    _print_steps({f"{rule}, Dirichlet({alpha:g})": lr for (rule, _, alpha), lr in table.lr.items()})
    return {
        f"Dirichlet({alpha:g})": {rule: {a: table.accuracy[rule, a, 3, alpha] for a in attacks} for rule in rules}
        for alpha in grid.alpha
    }


GRAPHS: dict[str, tuple[Any, int]] = {"ring": (Ring(), 1), "torus": (Torus(), 1), "exponential": (Exponential(), 2)}
"""Graphs, with the largest number of attackers among a node and its neighbours."""
BYZANTINE = (0, 6)
"""Attackers in gossip."""
NODES = 16


def gossip(base: Experiment, folder: Path) -> Cells:
    """Part (c): mean accuracy of the honest nodes' own models, by graph, rule and attack."""
    rules: dict[str, Callable[[int], Any]] = {
        "mean by W": lambda f: None, "trimmed mean": TrimmedMean, "MoNNA": MoNNA,
        "self-centred clipping": lambda f: SelfCenteredClipping(1.0),
    }  # fmt: skip
    under: dict[str, Any] = {"none": None, "reversed": replace(ATTACKS["reversed"], ids=BYZANTINE)}
    nodes = replace(
        base, topology=Static(), algorithm=DFedAvg(), partition=DirichletPartitioner(NODES, alpha=1.0),
        local=LocalWork(32, steps=5), rounds=base.rounds * 2 // 5,
        evaluation=Evaluation(every=base.rounds, clients_every=0),
        execution=Execution("blocks", block_size=NODES, threads=1),
    )  # fmt: skip

    def points(steps: Mapping[tuple[str, str], Sequence[float]], of: Experiment) -> dict[tuple[Any, ...], Experiment]:
        return {
            (graph, rule, attack, lr): replace(
                of, topology=Static(GRAPHS[graph][0]), algorithm=DFedAvg(lr=lr), attack=under[attack],
                aggregate=rules[rule](GRAPHS[graph][1]),
            )
            for (graph, rule), grid in steps.items() for attack in under for lr in grid
        }  # fmt: skip

    places = [(graph, rule) for graph in GRAPHS for rule in rules]
    withheld = replace(nodes, seed=1000, seeds=1, evaluation=replace(nodes.evaluation, holdout=0.2))
    tried = _swept(points(dict.fromkeys(places, LOCAL_STEPS), withheld), "nodes/holdout", folder / "tuning")
    chosen = {
        place: max(LOCAL_STEPS, key=lambda lr, place=place: min(   # type: ignore[misc]
            0.0 if math.isnan(tried[*place, attack, lr].mean) else tried[*place, attack, lr].mean for attack in under
        ))
        for place in places
    }  # fmt: skip
    _print_steps({f"{graph}, {rule}": lr for (graph, rule), lr in chosen.items()})
    final = points({place: [lr] for place, lr in chosen.items()}, nodes)
    found = _swept(final, "nodes/test", folder / "final")
    return {
        graph: {rule: {attack: found[graph, rule, attack, chosen[graph, rule]] for attack in under} for rule in rules}
        for graph in GRAPHS
    }


def _swept(points: Mapping[tuple[Any, ...], Experiment], scope: str, folder: Path) -> dict[tuple[Any, ...], Estimate]:
    """Mean accuracy of the honest nodes' own models at every point; NaN where they diverged.

    Raises:
        RunError: a run failed for another reason.
    """
    names = {key: ", ".join(f"{part:.3g}" if isinstance(part, float) else part for part in key) for key in points}
    made = sweep({names[key]: of for key, of in points.items()}, output=folder, jobs=1, progress=False)
    found = {}
    for key, name in names.items():
        reason = made.failures.get(name, "")
        if reason and not reason.startswith("DivergenceError"):
            raise RunError(f"{name}: {reason}")
        if reason:
            found[key] = Estimate(math.nan, None, points[key].seeds)
        else:
            (of,) = load_runs([made.path / name], scope, "accuracy_mean")
            found[key] = estimate([float(series.value[-1]) for series in of.seeds.values()])
    return found


def _print_steps(chosen: Mapping[str, float | None]) -> None:
    print("step sizes:", "; ".join(f"{name}: {lr:.3g}" for name, lr in chosen.items()))


def rows(cells: Cells) -> list[list[str]]:
    """The cells as a table with a row for each rule."""
    panels = {panel: list(next(iter(by_rule.values()))) for panel, by_rule in cells.items()}
    columns = [(panel, place) for panel, places in panels.items() for place in places]
    header = [f"{panel}: {place}" if place == panels[panel][0] else place for panel, place in columns]
    rules = next(iter(cells.values()))
    table = [[rule, *(text_of(cells[panel][rule][place]) for panel, place in columns)] for rule in rules]
    return [["rule", *header], *table]


PARTS = {"flag": flag, "mixing": mixing, "gossip": gossip}


def main(arguments: list[str] | None = None) -> None:
    """Run the parts; print their tables, and write them and their pictures."""
    parser = argparse.ArgumentParser(
        "python -m experiments.byzantine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="one part; all by default")
    parser.add_argument("--root", type=Path, default=Path("runs/byzantine-experiment"), help="folder of the runs")
    parser.add_argument("--data", help="data set of images (default: mnist)")
    parser.add_argument("--quick", action="store_true", help="digits, few rounds, 2 seeds")
    options = parser.parse_args(arguments)
    base = quick(BASE) if options.quick else BASE
    base = base if options.data is None else replace(base, data=Data(options.data))
    for part in [options.part] if options.part else PARTS:
        folder = options.root / part
        cells = PARTS[part](base, folder)
        text = markdown(rows(cells))
        (folder / "table.md").write_text(text)
        intervals(cells, "test accuracy", folder / "accuracy.png")
        print(f"{text}Table and picture: {folder}")


if __name__ == "__main__":
    main()
