"""The grid of robust learning: rules x attacks x attackers x heterogeneity x seeds, as two sweeps in one folder.

    NAME/tuning/     step sizes, each rule's on samples that its clients withhold, and on seeds of their own
    NAME/final/      the cells of the table, each with the step size chosen for its rule, f and heterogeneity

A cell is an experiment with f attackers and a rule that tolerates f. What counts for a rule is its worst accuracy over
the attacks, also when its step size is chosen. Cells that diverge count as 0. Both sweeps continue where they were
interrupted, and can grow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from fedsim.checks import whole
from fedsim.controller.notes import telling_once
from fedsim.errors import ConfigError, many
from fedsim.experiment.config import to_config
from fedsim.experiment.experiment import Experiment
from fedsim.report.statistics import Estimate
from fedsim.robust import Attack, Mean
from fedsim.robust.rule import check, with_f
from fedsim.sweeps.grid import Point
from fedsim.sweeps.tuning import run_all, trial, value_of
from fedsim.sweeps.widened import check_folder
from fedsim.types import Rule

Cell = tuple[str, str, int, float | None]
"""Rule, attack, f and heterogeneity."""
Group = tuple[str, int, float | None]
"""Rule, f and heterogeneity: the cells that share a step size."""


@dataclass(frozen=True)
class RobustGrid:
    """The grid.

    Args:
        base: experiment of every cell, except for what the grid sets.
        rules: rules by name; each is set to tolerate f.
        attacks: attacks by name; each has f attackers.
        f: numbers of attackers; 0 for no attack.
        alpha: values of the partition's ``alpha``; empty leaves the partition as it is.
        lr: step sizes to choose from; empty leaves the algorithm as it is.
        step: setting of the algorithm that ``lr`` has values of; rules that normalise need "server_lr".
        tuning_seeds: number of seeds on which step sizes are chosen.
    """

    base: Experiment
    rules: Mapping[str, Rule]
    attacks: Mapping[str, Attack]
    f: Sequence[int] = (1,)
    alpha: Sequence[float] = ()
    lr: Sequence[float] = ()
    step: str = "lr"
    tuning_seeds: int = 1

    def __post_init__(self) -> None:
        if not self.rules or not self.attacks or not self.f:
            raise ConfigError("the grid has no rules, attacks or numbers of attackers; expected one of each at least")
        for f in self.f:
            whole("f", f, 0)
            if f >= self.clients():
                n = many(self.clients(), "client")
                raise ConfigError(f"f is {f} of {n}; expected fewer attackers than clients")
        base = self.base
        for name, setting, owner in (("alpha", self.alpha, base.partition), (self.step, self.lr, base.algorithm)):
            if setting and not hasattr(owner, name):
                raise ConfigError(f"{type(owner).__name__} has no {name}, which the grid would set; leave {name} out")
        whole("tuning seeds", self.tuning_seeds, 1)
        for cell, lr in product(self.cells(), self.lr or (None,)):   # bad settings fail before anything runs
            made = self.experiment(cell, lr)
            if made.topology is None:
                check(made.aggregate, int(made.participation.expected(self.clients())), f"{cell[0]}, f = {cell[2]}: ")

    def cells(self) -> Iterator[Cell]:
        """Every cell of the table; without attackers there is one for each rule and heterogeneity."""
        for rule, f, alpha in self.groups():
            yield from ((rule, attack, f, alpha) for attack in (self.attacks if f else ("none",)))

    def groups(self) -> Iterator[Group]:
        """Every rule, f and heterogeneity."""
        yield from product(self.rules, self.f, self.alpha or (None,))

    def experiment(self, cell: Cell, lr: float | None) -> Experiment:
        """The experiment of a cell."""
        rule, attack, f, alpha = cell
        base = self.base
        if alpha is not None:
            base = replace(base, partition=replace(base.partition, alpha=alpha))   # type: ignore[type-var]
        if lr is not None:
            base = replace(base, algorithm=replace(base.algorithm, **{self.step: lr}))   # type: ignore[type-var]
        aggregate = with_f(self.rules[rule], f)
        by = replace(self.attacks[attack], share=f / self.clients(), ids=None) if f else None
        return replace(base, aggregate=None if type(aggregate) is Mean else aggregate, attack=by)

    def clients(self) -> int:
        """Number of clients, that of the partition."""
        n = getattr(self.base.partition, "num_partitions", None)
        if n is None:
            raise ConfigError(
                f"partition {self.base.partition!r:.80} does not say its number of clients; expected one that does, as"
                " DirichletPartitioner(15, alpha=1.0)"
            )
        return int(n)


@dataclass(frozen=True)
class RobustTable:
    """The results of the grid.

    Attributes:
        accuracy: final accuracy of every cell; NaN if a seed diverged.
        lr: step size chosen for each rule, f and heterogeneity; None if there was no choice.
        worst: the attack with the least mean accuracy, and that accuracy, for each rule, f and heterogeneity.
    """

    accuracy: Mapping[Cell, Estimate]
    lr: Mapping[Group, float | None]
    worst: Mapping[Group, tuple[str, Estimate]]


@telling_once()
def run_grid(grid: RobustGrid, folder: Path, jobs: int | None = None, *, progress: bool = True) -> RobustTable:
    """Run the unfinished cells of the grid, and return its table; a grid that has grown runs its new cells.

    Raises:
        ConfigError: the folder holds something else, or cells with other settings.
    """
    check_folder(folder)
    chosen: dict[Group, float | None] = dict.fromkeys(grid.groups(), None)
    if len(grid.lr) == 1:
        chosen = dict.fromkeys(chosen, grid.lr[0])
    elif grid.lr:
        tried = {(cell, lr): grid.experiment(cell, lr) for cell in grid.cells() for lr in grid.lr}
        trials = {key: trial(experiment, grid.tuning_seeds) for key, experiment in tried.items()}
        points = {key: Point(_named(*key), to_config(experiment)) for key, experiment in trials.items()}
        made = run_all(list(points.values()), folder / "tuning", jobs, progress)
        scope = "clients/holdout" if grid.base.topology is None else "nodes/holdout"
        value = {key: value_of(made, point, scope, "accuracy_mean") for key, point in points.items()}
        for group in chosen:
            chosen[group] = max(grid.lr, key=lambda lr, group=group: min(   # type: ignore[misc]
                _least(value[cell, lr]) for cell in grid.cells() if (cell[0], *cell[2:]) == group
            ))  # fmt: skip
    cells = {cell: grid.experiment(cell, chosen[cell[0], cell[2], cell[3]]) for cell in grid.cells()}
    final = {cell: Point(_named(cell, None), to_config(experiment)) for cell, experiment in cells.items()}
    chose = [point.name for point in final.values()] if len(grid.lr) > 1 else []
    made = run_all(list(final.values()), folder / "final", jobs, progress, chose)
    scope = "average/test" if grid.base.topology is not None else "server/test"
    accuracy = {cell: value_of(made, point, scope, "accuracy") for cell, point in final.items()}
    worst = {}
    for group in chosen:
        among = {cell[1]: accuracy[cell] for cell in cells if (cell[0], *cell[2:]) == group}
        attack = min(among, key=lambda name, among=among: _least(among[name]))   # type: ignore[misc]
        worst[group] = attack, among[attack]
    return RobustTable(accuracy, chosen, worst)


def _least(value: Estimate) -> float:
    return 0.0 if math.isnan(value.mean) else value.mean


def _named(cell: Cell, lr: float | None) -> str:
    rule, attack, f, alpha = cell
    parts = [rule.replace(" ", ""), attack, f"f={f}"]
    parts += [] if alpha is None else [f"alpha={alpha:g}"]
    return ",".join(parts + ([] if lr is None else [f"lr={lr:g}"]))


def records(table: RobustTable) -> list[dict[str, Any]]:
    """The cells of the table as plain values, for JSON."""
    rows = []
    for (rule, attack, f, alpha), value in table.accuracy.items():
        group = rule, f, alpha
        diverged = math.isnan(value.mean)
        rows.append({
            "rule": rule, "attack": attack, "f": f, "alpha": alpha,
            "lr": table.lr[group], "accuracy": None if diverged else value.mean,
            "half_width": None if diverged else value.half_width, "worst": table.worst[group][0] == attack,
        })  # fmt: skip
    return rows
