"""``fedsim byzantine``: the grid of robust learning."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from fedsim.cli import flags
from fedsim.cli.output import console
from fedsim.cli.sweep import JOBS, values
from fedsim.controller.notes import remark
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config
from fedsim.experiment.config.described import Component, describe, experiment_component
from fedsim.experiment.config.find import find
from fedsim.experiment.config.plan import names
from fedsim.record.figures import kind_of
from fedsim.report.compare import text_of

RULES = "Mean,CoordinateMedian,TrimmedMean,NNM+TrimmedMean"
ATTACKS = "SignFlip,IPM,ALIE,Mimic"
BYZANTINE = flags.Command(
    "byzantine",
    "Run a grid of rules, attacks, numbers of attackers and heterogeneity, with step sizes chosen on withheld samples,"
    " and print the accuracy of each rule under its worst attack. Other flags are settings of the experiment of all"
    " cells. To continue after an interruption, repeat the command: no cell runs twice.",
    experiment_component,
    {
        "output": "folder of this grid (default: runs/byzantine)",
        "rules": f"rules, with steps before them as in NNM+Krum (default: {RULES})",
        "attacks": f"attacks (default: {ATTACKS})",
        "f": "numbers of attackers, as in 1,2 (default: 1)",
        "alpha": "values of the partition's alpha, as in 0.1,1; those of the partition by default",
        "lr": "step sizes to choose from, as in 0.03,0.1,0.3; that of the algorithm by default",
        "step": "setting of the algorithm that lr has values of; rules that normalise need server_lr (default: lr)",
        "tuning_seeds": "number of seeds to choose step sizes on, which are not those of the table (default: 1)",
        "heat_map": "file for heat maps of the worst accuracy over f and alpha, .png, .svg or .pdf",
        "jobs": JOBS,
    },
    {"quiet": "show no progress on stderr", "json": "print the cells as JSON"},
)


def byzantine(argv: Sequence[str]) -> int:
    """Run the unfinished cells of a grid, and print its table."""
    line = flags.read(BYZANTINE, argv)
    if "help" in line.switches:
        flags.print_help(BYZANTINE, {"algorithm": names("algorithm")[0], **line.settings})
        return 0
    from fedsim.sweeps.byzantine import RobustGrid, RobustTable, records, run_grid  # slow to import

    options = line.options
    rules = {name: _rule(name) for name in values(options.get("rules", RULES))}
    attacks = {name: find("attack", name, "--attacks")() for name in values(options.get("attacks", ATTACKS))}
    grid = RobustGrid(
        from_config(line.settings),
        rules,
        attacks,
        [_number(text, "f", int) for text in values(options.get("f", "1"))],
        [_number(text, "alpha", float) for text in values(options["alpha"])] if "alpha" in options else [],
        [_number(text, "lr", float) for text in values(options["lr"])] if "lr" in options else [],
        options.get("step", "lr"),
        line.number("tuning_seeds", int, 1),
    )
    for attack, f in product(grid.attacks.values(), grid.f):
        if text := attack.remark(grid.clients(), f):
            remark(text)
    if "heat_map" in options:
        kind_of(options["heat_map"])                       # a wrong one fails before the cells run
    folder = Path(options.get("output", "runs/byzantine"))
    table: RobustTable = run_grid(grid, folder, line.number("jobs", int), progress="quiet" not in line.switches)
    if "heat_map" in options:
        draw(grid, table, Path(options["heat_map"]))
    if "json" in line.switches:
        print(json.dumps({"grid": str(folder), "cells": records(table)}, allow_nan=False))
        return 0
    for f in grid.f:
        for alpha in grid.alpha or (None,):
            console().print(shown(grid, table, f, alpha))
    return 0


def _rule(name: str) -> Any:
    *before, last = name.split("+")
    found = find("aggregate", last, "--rules")
    rule = found() if isinstance(found, type | Component) else found   # a function is a rule itself
    for step in reversed(before):
        make = find("aggregate", step, "--rules")
        if "rule" not in describe(make).settings:
            raise ConfigError(
                f"--rules has {name!r}, and {step} is no step before a rule; expected steps first, such as NNM+Krum"
            )
        rule = make(rule, f=1) if "f" in describe(make).settings else make(rule)
    return rule


def _number(text: str, name: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        expected = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"--{name} has {text!r}; expected {expected}, as in 1,2") from None


def shown(grid: Any, table: Any, f: int, alpha: float | None) -> Table:
    """Accuracies of all rules and attacks for one f and heterogeneity; the best rule's worst is bold."""
    at = "" if alpha is None else f", alpha = {alpha:g}"
    attacks = list(grid.attacks) if f else ["none"]
    title = f"f = {f} of {grid.clients()}{at}"
    out = Table("rule", "lr", *attacks, "worst", box=SIMPLE, title=title, title_justify="left")
    means = {rule: table.worst[rule, f, alpha][1].mean for rule in grid.rules}
    best = max(means, key=lambda rule: -1 if math.isnan(means[rule]) else means[rule])
    for rule in grid.rules:
        lr, (_, worst) = table.lr[rule, f, alpha], table.worst[rule, f, alpha]
        cells = [text_of(table.accuracy[rule, attack, f, alpha]) for attack in attacks]
        least = text_of(worst)
        out.add_row(rule, "" if lr is None else f"{lr:g}", *cells, f"[bold]{least}[/bold]" if rule == best else least)
    return out


def draw(grid: Any, table: Any, path: Path) -> None:
    """Heat maps of the worst accuracy of every rule, and of the best rule in each place."""
    from fedsim.report.heat_maps import heat_maps  # matplotlib is slow to import

    alphas = list(grid.alpha) or [None]
    maps = {
        rule: np.array([[table.worst[rule, f, alpha][1].mean for alpha in alphas] for f in grid.f])
        for rule in grid.rules
    }
    maps["best rule"] = np.fmax.reduce(list(maps.values()))
    columns = ["" if alpha is None else f"{alpha:g}" for alpha in alphas]
    heat_maps(maps, [str(f) for f in grid.f], columns, ("f", "alpha"), path)
