"""``fedsim tune``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from fedsim.cli import flags
from fedsim.cli.output import console
from fedsim.cli.sweep import JOBS
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, override
from fedsim.experiment.config.plan import names
from fedsim.experiment.experiment import Experiment
from fedsim.experiment.short_forms import put
from fedsim.report.compare import compare, text_of
from fedsim.report.records import records
from fedsim.report.terminal import render
from fedsim.sweeps.grid import grid

TUNE = flags.Command(
    "tune",
    "Compare methods at their best: choose the settings of each from a grid of its own, on samples that clients\n"
    "withhold and on other seeds, then run and compare the chosen ones. FILE.yaml holds the settings of all, and\n"
    "    methods:\n"
    "      FedAvg: {algorithm.lr: [0.1, 0.3, 1.0]}\n"
    "      mine: {algorithm: FedSpeed, algorithm.lr: [0.1, 0.3], algorithm.rho: [0.01, 0.05]}\n"
    "To continue after an interruption, repeat the command; finished runs are not repeated.",
    Experiment,
    {
        "output": "folder of this comparison (default: runs/tune)",
        "jobs": JOBS,
        "metric": "metric that chooses, on withheld samples (default: accuracy)",
        "tuning_seeds": "seeds of the choice (default: 2)",
    },
    {"quiet": "show no progress on stderr", "json": "print the result as JSON"},
)
EXAMPLE = "methods: {FedAvg: {algorithm.lr: [0.1, 0.3]}, FedSpeed: {algorithm.lr: [0.1, 0.3]}}"


def tune(argv: Sequence[str]) -> int:
    """Choose the settings of every method of a file, run them, and print their comparison."""
    words = flags.split(TUNE, argv)
    if "help" in words.line.switches:
        flags.print_help(TUNE, {"algorithm": names("algorithm")[0]})
        return 0
    options, quiet = words.line.options, "quiet" in words.line.switches
    made = _methods(words)
    from fedsim.sweeps.tuning import tune as choose  # deferred: slow to import

    metric = options.get("metric", "accuracy")
    done = choose(
        made, options.get("output", "runs/tune"), seeds=words.line.number("tuning_seeds", int, 2), metric=metric,
        jobs=words.line.number("jobs", int), progress=not quiet,
    )  # fmt: skip
    comparison = compare(done.paths, metric=metric)
    if "json" in words.line.switches:
        print(json.dumps({"chosen": dict(done.chosen), "runs": records(comparison)}, allow_nan=False))
        return 0
    if done.withheld:
        console().print(_choices(done))
    console().print(render(comparison))
    return 0


def _methods(words: flags.Words) -> dict[str, dict[str, Experiment]]:
    """Experiments by method and setting; every one is built, so that invalid settings fail at once."""
    listed = words.file.pop("methods", None)
    if not isinstance(listed, Mapping) or not listed or not all(isinstance(of, Mapping) for of in listed.values()):
        raise ConfigError(f"the file has no methods with their settings; expected e.g. {EXAMPLE}")
    notes = list[str]()
    base = flags.settle(words.file, words.flags, notes)
    made = {}
    for method, settings in listed.items():
        known = {} if "algorithm" in settings else {"algorithm": str(method)}
        lists = {key: value if isinstance(value, list) else [value] for key, value in {**known, **settings}.items()}
        if empty := [key for key, values in lists.items() if not values]:
            raise ConfigError(f"methods.{method}.{empty[0]} is an empty list; expected values to choose from")
        axes = {key: values for key, values in lists.items() if len(values) > 1}
        alone = {key: values[0] for key, values in lists.items()}
        made[str(method)] = {
            name or "as given": _experiment(method, base, alone | chosen, notes) for name, chosen in grid(axes)
        }
    for note in dict.fromkeys(notes):
        print(f"fedsim: note: {note}", file=sys.stderr)
    return made


def _experiment(method: Any, base: Mapping[str, Any], settings: Mapping[str, Any], notes: list[str]) -> Experiment:
    above: dict[str, Any] = {}
    for place, value in settings.items():
        above = put(above, place, value)
    try:
        return from_config(override(base, above, notes))
    except ConfigError as error:
        raise ConfigError(f"methods.{method}: {error}") from None


def _choices(done: Any) -> Table:
    """What was chosen for each method, and among how many settings."""
    table = Table("method", "chosen", f"{done.metric} on withheld samples", "of settings", box=SIMPLE)
    for method, values in done.withheld.items():
        chosen = done.chosen[method]
        table.add_row(method, chosen, text_of(values[chosen]), str(len(values)))
    if len({len(values) for values in done.withheld.values()}) > 1:
        table.caption = "Budgets differ: a method with more settings to choose from has an advantage."
    return table
