"""``fedsim sweep``."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.cli import flags
from fedsim.cli.compare import TARGET
from fedsim.cli.output import console
from fedsim.controller.notes import remark
from fedsim.errors import ConfigError, many
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.config.described import experiment_component
from fedsim.experiment.config.plan import names
from fedsim.report.compare import COSTS, text_of
from fedsim.report.records import records
from fedsim.report.terminal import render
from fedsim.sweeps import grid as sweeps
from fedsim.sweeps.grid import Choice, Point, Sweep

JOBS = "number of concurrent runs; 1 runs in this process, more need Ray (default: one per CPU if Ray is installed)"
SWEEP = flags.Command(
    "sweep",
    "Run a grid of experiments, each in a run directory of its own. Any setting takes a list of values, as in\n"
    "--algorithm.lr 0.03,0.1 --local.epochs 1,2; commas within brackets or quotes do not separate values. To continue\n"
    "after an interruption, repeat the command; finished points are not run again, nor those of a sweep with fewer\n"
    "values or seeds that --output names. At the end, a table compares all points with the one that has the best mean\n"
    "final value.",
    experiment_component,
    {
        "output": "folder of this sweep",
        "root": "folder for new sweeps (default: runs)",
        "jobs": JOBS,
        "metric": "metric that selects the best point (default: accuracy, or loss if accuracy is not measured)",
        "scope": "model and samples of the metric (default: server/test)",
        "target": TARGET,
    },
    {"quiet": "show no progress on stderr", "json": "print the result as JSON"},
)


@dataclass(frozen=True)
class Ending:
    """Options of the command that apply to a resumed sweep too."""

    jobs: int | None = None
    quiet: bool = False
    json: bool = False
    scope: str = "server/test"
    metric: str | None = None
    target: float | None = None


def sweep(argv: Sequence[str]) -> int:
    """Run the unfinished points of a command line's grid; the exit code is 1 if a point failed."""
    words = flags.split(SWEEP, argv)
    if "help" in words.line.switches:
        first = [(key, values(text)[0]) for key, text in words.flags]
        flags.print_help(SWEEP, {"algorithm": names("algorithm")[0], **flags.settle(words.file, first, [])})
        return 0
    options = words.line.options
    ending = Ending(
        words.line.number("jobs", int),
        "quiet" in words.line.switches,
        "json" in words.line.switches,
        options.get("scope", "server/test"),
        options.get("metric"),
        words.line.number("target", float),
    )
    title, points = _points(words)
    from fedsim.sweeps.jobs import jobs_of  # deferred: slow to import

    jobs_of(ending.jobs, points)                           # invalid values fail before a folder is created
    output = Path(options["output"]) if "output" in options else None
    root = Path(options.get("root", "runs"))
    return finish(sweeps.start(points, output=output, root=root, name=f"sweep-{title}"), ending)


def finish(begun: Sweep, ending: Ending) -> int:
    """Run the unfinished points of a sweep, and print the comparison of all."""
    from fedsim.sweeps.jobs import run_sweep

    failures = run_sweep(begun, ending.jobs, progress=not ending.quiet)
    comparison = sweeps.compare_points(begun, ending.scope, ending.metric, ending.target)
    choice = None if comparison is None else sweeps.choose(comparison)
    if ending.json:
        best = None if choice is None else _record(choice)
        runs = [] if comparison is None else records(comparison)
        print(json.dumps({"sweep": str(begun.path), "best": best, "failed": failures, "runs": runs}, allow_nan=False))
    elif comparison is not None:
        console().print(render(comparison))
        console().print(_verdict(comparison.metric, choice), highlight=False, markup=False, soft_wrap=True)
    for name, reason in failures.items():
        print(f"fedsim: {name} failed: {reason}", file=sys.stderr)
    if failures:
        print(
            f"fedsim: {len(failures)} of {many(len(begun.points), 'point')} failed; to retry them:"
            f" fedsim resume {begun.path}",
            file=sys.stderr,
        )
    return 1 if failures else 0


def values(text: str) -> list[str]:
    """Split a list at its commas, except within brackets, braces or quotes.

    Raises:
        ConfigError: a value is empty or repeated.
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    found = [re.sub(r"^(['\"])(.*)\1$", r"\2", part.strip()) if len(parts) > 1 else part for part in parts]
    if len(found) > 1 and not all(found):
        raise ConfigError(f"{text!r} has an empty value; expected a list such as 0.03,0.1")
    if len(set(found)) < len(found):
        raise ConfigError(f"{text!r} repeats a value; expected distinct values")
    return found


def _points(words: flags.Words) -> tuple[str, list[Point]]:
    """Title and points of the sweep; every experiment is built, so that invalid settings fail at once."""
    lists = {key: values(text) for key, text in dict(words.flags).items()}
    axes = {key: found for key, found in lists.items() if len(found) > 1}
    if not axes:
        raise ConfigError("nothing to sweep over: give a list, such as --algorithm.lr 0.03,0.1, or use `fedsim run`")
    if axes.keys() & {"seed", "seeds"}:
        raise ConfigError("seeds are repetitions, of which none is best; use --seeds 3, and sweep another setting")
    points, notes, titles = [], list[str](), list[str]()
    for name, chosen in sweeps.grid(axes):
        alone = [(key, chosen.get(key, found[0])) for key, found in lists.items()]
        try:
            experiment = from_config(flags.settle(words.file, alone, notes))
        except ConfigError as error:
            raise ConfigError(f"point {name}: {error}") from None
        points.append(Point(name, to_config(experiment)))
        sweeps.experiment_of(points[-1].config, experiment)
        titles.append(experiment.title)
    for note in notes:
        remark(note)
    return titles[0] if len(set(titles)) == 1 else "experiments", points


def _verdict(metric: str, choice: Choice | None) -> str:
    if choice is None:
        return f"No best point: {metric} is undefined at the end of every point that has finished."
    units = {**COSTS, "seconds": "host seconds"}
    costs = [f"{text_of(cost)} {units[name]}" for name, cost in choice.cost.items()]
    run, final = choice.run.run, text_of(choice.run.final)
    return (
        f"Best by final {metric} over {many(len(run.seeds), 'seed')}: {run.path}: {final}, for {', '.join(costs)}.\n"
        f"It was chosen on these seeds; measure it on others, such as --seed {max(run.seeds) + 1}, before reporting it."
    )


def _record(choice: Choice) -> dict[str, Any]:
    mean = choice.run.final.mean
    costs = {name: None if math.isnan(cost.mean) else cost.mean for name, cost in choice.cost.items()}
    return {"run": choice.run.run.label, "path": str(choice.run.run.path), "final": mean, "cost": costs}
