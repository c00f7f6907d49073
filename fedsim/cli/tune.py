"""``fedsim tune``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from fedsim.cli import flags
from fedsim.cli.output import console
from fedsim.cli.sweep import JOBS
from fedsim.controller.notes import remark
from fedsim.errors import ConfigError
from fedsim.experiment.config import from_config, override
from fedsim.experiment.config.described import experiment_component
from fedsim.experiment.config.plan import names
from fedsim.experiment.short_forms import put
from fedsim.report.compare import compare, text_of
from fedsim.report.records import records
from fedsim.report.terminal import render
from fedsim.sweeps.grid import grid
from fedsim.sweeps.search import Axis, Interval, check_search, drawn

if TYPE_CHECKING:
    from fedsim.experiment.experiment import Experiment

TUNE = flags.Command(
    "tune",
    "Compare methods at their best: choose the settings of each from a grid of its own, on samples that clients\n"
    "withhold and on other seeds, then run and compare the chosen ones. FILE.yaml holds the settings of all, and\n"
    "    methods:\n"
    "      FedAvg: {algorithm.lr: [0.1, 0.3, 1.0]}\n"
    "      mine: {algorithm: FedSpeed, algorithm.lr: 0.1, algorithm.rho: [0.01, 0.1]}\n"
    "With --search random or halving, values may also be drawn: algorithm.lr: {low: 0.01, high: 1, scale: log}.\n"
    "To continue after an interruption, repeat the command; finished runs are not repeated.",
    experiment_component,
    {
        "output": "folder of this comparison (default: runs/tune)",
        "jobs": JOBS,
        "metric": "metric that chooses, on withheld samples (default: accuracy)",
        "tuning_seeds": "number of seeds to choose settings on, which are not those of the comparison (default: 2)",
        "search": "grid: all settings (default); random: some; halving: all, but only the best of them for all rounds",
        "trials": "settings of each method that a random search or halving draws, the same number for all",
        "eta": "with halving: keep the best 1 in ETA settings, and run these for ETA times as many rounds (default: 3)",
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
    from fedsim.sweeps.tuning import tune as choose  # deferred: slow to import

    search, trials = options.get("search", "grid"), words.line.number("trials", int)
    check_search(search, trials, eta := words.line.number("eta", int, 3))
    made = _methods(words, search, trials)
    metric = options.get("metric", "accuracy")
    done = choose(
        made, options.get("output", "runs/tune"), seeds=words.line.number("tuning_seeds", int, 2), metric=metric,
        search=search, trials=trials, eta=eta, jobs=words.line.number("jobs", int), progress=not quiet,
    )  # fmt: skip
    comparison = compare(done.paths, metric=metric)
    if "json" in words.line.switches:
        found = {"chosen": dict(done.chosen), "rounds": dict(done.rounds), "ends": dict(done.ends)}
        print(json.dumps({**found, "runs": records(comparison)}, allow_nan=False))
        return 0
    if done.withheld:
        console().print(_choices(done))
    console().print(render(comparison))
    return 0


def _methods(words: flags.Words, search: str, trials: int | None) -> dict[str, dict[str, Experiment]]:
    """Experiments by method and setting; every one is built, so that invalid settings fail at once."""
    listed = words.file.pop("methods", None)
    if not isinstance(listed, Mapping) or not listed or not all(isinstance(of, Mapping) for of in listed.values()):
        raise ConfigError(f"the file has no methods with their settings; expected e.g. {EXAMPLE}")
    notes = list[str]()
    base = flags.settle(words.file, words.flags, notes)
    made = {}
    for method, settings in listed.items():
        known = {} if "algorithm" in settings else {"algorithm": str(method)}
        lists = {key: _axis(f"methods.{method}.{key}", value) for key, value in {**known, **settings}.items()}
        alone = {key: axis[0] for key, axis in lists.items() if not isinstance(axis, Interval)}
        axes = {key: axis for key, axis in lists.items() if isinstance(axis, Interval) or len(axis) > 1}
        made[str(method)] = {
            name or "as given": _experiment(method, base, alone | chosen, notes)
            for name, chosen in _chosen(method, axes, search, trials, base.get("seed", 0))
        }
    for note in notes:
        remark(note)
    return made


def _axis(place: str, value: Any) -> Axis:
    """Values of a setting, or an interval of them."""
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= {"low", "high", "scale"}:
        try:
            return Interval(**value)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    if value == []:
        raise ConfigError(f"{place} is an empty list; expected values to choose from")
    return value if isinstance(value, list) else [value]


def _chosen(
    method: str, axes: Mapping[str, Axis], search: str, trials: int | None, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and values of every setting to try: all of a grid, or so many that are drawn."""
    intervals = [key for key, axis in axes.items() if isinstance(axis, Interval)]
    if not intervals:
        yield from grid({key: list(axis) for key, axis in axes.items() if not isinstance(axis, Interval)})
        return
    if search == "grid" or trials is None:
        raise ConfigError(
            f"methods.{method}.{intervals[0]} is an interval, of which no grid has all values; give a list, or --search"
            " random --trials 10"
        )
    for chosen in drawn(axes, trials, seed):
        (found,) = grid({key: [value] for key, value in chosen.items()})
        yield found


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
    table = Table("method", "chosen", f"{done.metric} on withheld samples", "of settings", "rounds", box=SIMPLE)
    for method, values in done.withheld.items():
        chosen = done.chosen[method]
        table.add_row(method, chosen, text_of(values[chosen]), str(len(done.tried[method])), f"{done.rounds[method]:,}")
    remarks = [f"{method}: {remark}; the best may lie beyond." for method, of in done.ends.items() for remark in of]
    if len(set(done.rounds.values())) > 1:
        remarks.insert(0, "Budgets differ: a method with more rounds of choice has an advantage.")
    table.caption, table.caption_justify = "\n".join(remarks), "left"
    return table
