"""``fedsim run`` and ``fedsim resume``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.table import Table

from fedsim.cli import flags
from fedsim.cli.allow import HELP
from fedsim.cli.output import Arguments, console
from fedsim.cli.sweep import JOBS, Ending, finish
from fedsim.errors import ConfigError, many
from fedsim.experiment.config import from_config, to_config
from fedsim.experiment.config.described import experiment_component
from fedsim.experiment.config.plan import names
from fedsim.record.directory import RunDirectory, describe_stops, open_run
from fedsim.report.compare import text_of
from fedsim.report.series import RunSeries, load_runs
from fedsim.report.statistics import Estimate, estimate
from fedsim.sweeps.grid import is_sweep, open_sweep

RUN = flags.Command(
    "run",
    "Run an experiment in a new run directory. Flags override the file, which overrides the defaults.",
    experiment_component,
    {
        "output": "run directory to create, which must not exist",
        "root": "folder for new run directories (default: runs)",
    },
    {
        "print_config": "print all settings as YAML, which can serve as FILE.yaml, and exit",
        "quiet": "show no progress on stderr",
        "json": "print the result as one line of JSON",
    },
)


def run(argv: Sequence[str]) -> int:
    """Run the experiment of a command line, and print its directory and last metrics."""
    line = flags.read(RUN, argv)
    if "help" in line.switches:
        flags.print_help(RUN, {"algorithm": names("algorithm")[0], **line.settings})
        return 0
    experiment = from_config(line.settings)
    if "print_config" in line.switches:
        print(yaml.safe_dump(to_config(experiment), sort_keys=False, allow_unicode=True), end="")
        return 0
    from fedsim import api  # PyTorch: whoever asks for help need not wait for it

    root = Path(line.options.get("root", "runs"))
    output = Path(line.options["output"]) if "output" in line.options else None
    directory = api.run(experiment, output=output, root=root, progress="quiet" not in line.switches)
    print_result(directory, "json" in line.switches)
    return 0


def resume(argv: Sequence[str]) -> int:
    """Resume a run or a sweep, with the output of `run` or `fedsim sweep`."""
    about = "Resume an interrupted run or sweep from its checkpoints, or give a run more rounds or seeds."
    parser = Arguments("fedsim resume", description=about)
    parser.add_argument("run", type=Path, metavar="DIR", help="run directory or folder of a sweep")
    more = "rounds in all, more than it has done; the result is that of a run that had them from the start"
    parser.add_argument("--rounds", type=int, metavar="N", help=more)
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds in all, as many as it has or more")
    edited = "continue although config.yaml or metrics.jsonl were edited since; manifest.json says so"
    parser.add_argument("--accept-changes", action="store_true", help=edited)
    parser.add_argument("--allow", metavar="MODULE", help=HELP)
    parser.add_argument("--quiet", action="store_true", help=RUN.switches["quiet"])
    parser.add_argument("--json", action="store_true", help=RUN.switches["json"])
    parser.add_argument("--jobs", type=int, metavar="JOBS", help=f"for a sweep: {JOBS}")
    arguments = parser.parse_args(argv)
    if is_sweep(arguments.run):
        if arguments.rounds is not None:
            raise ConfigError(f"{arguments.run} is a sweep; --rounds extends a run, such as one of its points")
        if arguments.seeds is not None:
            more = f"repeat the command that made it with --output {arguments.run} --seeds {arguments.seeds}"
            raise ConfigError(f"{arguments.run} is a sweep, and --seeds extends a run; {more}")
        if arguments.accept_changes:
            raise ConfigError(f"{arguments.run} is a sweep; --accept-changes is for a run, such as one of its points")
        return finish(open_sweep(arguments.run), Ending(arguments.jobs, arguments.quiet, arguments.json))
    before = open_run(arguments.run)
    if arguments.jobs is not None:
        raise ConfigError(f"{arguments.run} is a run; --jobs is for a sweep, whose points are several runs")
    from fedsim import api  # as in run

    status, planned = before.manifest["status"].values(), before.config.get("rounds")
    quiet, accept = arguments.quiet, arguments.accept_changes
    directory = api.resume(
        arguments.run, rounds=arguments.rounds, seeds=arguments.seeds, progress=not quiet, accept_changes=accept
    )
    as_before = planned == directory.config["rounds"] and len(status) == len(directory.manifest["status"])
    idle = as_before and all(seed["state"] == "finished" for seed in status)
    if idle and not arguments.quiet:
        stops = describe_stops(directory.manifest)
        how = f"stopped: {stops}" if stops else f"finished its {many(planned or 0, 'round')}"
        print(f"fedsim: note: {directory.path} had {how}; nothing to resume", file=sys.stderr)
    print_result(directory, arguments.json)
    return 0


def print_result(directory: RunDirectory, as_json: bool) -> None:
    """Print the directory and last metrics of a run."""
    (series,) = load_runs([directory.path], "server/test", "loss")
    final = {key: estimate(values) for key, values in _last_values(series).items()}
    if as_json:
        result: dict[str, Any] = {"run": str(directory.path), "seeds": list(series.seeds), "final": {}}
        for (scope, metric), value in final.items():
            result["final"].setdefault(scope, {})[metric] = _plain(value)
        print(json.dumps(result, allow_nan=False))
        return
    table = Table("metric", "", box=SIMPLE, title=str(directory.path), title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    for key, value in final.items():
        table.add_row(" ".join(key), text_of(value, nan=series.of_nan()))
    console().print(table)


def _last_values(series: RunSeries) -> dict[tuple[str, str], list[float]]:
    """Last values of all seeds, by scope and metric."""
    keys = dict.fromkeys(key for seed in series.seeds.values() for key in seed.last)
    return {key: [seed.last[key] for seed in series.seeds.values() if key in seed.last] for key in keys}


def _plain(value: Estimate) -> dict[str, float | None]:
    numbers = {"mean": value.mean, "half_width": value.half_width}
    return {name: None if number is None or math.isnan(number) else number for name, number in numbers.items()}
