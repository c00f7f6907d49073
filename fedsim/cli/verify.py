"""``fedsim verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.cli.output import Arguments, add_json, print_json
from fedsim.report.series import find_runs
from fedsim.sweeps.grid import is_sweep, open_sweep


def verify(argv: Sequence[str]) -> int:
    """Print what is wrong with runs, or what they lack; 0 if all have finished and are as they were written."""
    parser = Arguments(
        "fedsim verify",
        description="Check that runs are whole: finished, with the hashes, order and rows that they had. Exit code 1"
        " otherwise.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a folder of several")
    add_json(parser, "verify")
    arguments = parser.parse_args(argv)
    runs = find_runs(arguments.runs)
    from fedsim.controller.verify import remaining  # deferred: slow to import
    from fedsim.controller.verify import verify as faults_of

    found = {run.path: faults_of(run.path) for run in runs}
    faults = [fault for of_run in found.values() for fault in of_run]
    rest = [line for path, of_run in found.items() if not of_run for line in remaining(path)]
    for sweep in (open_sweep(path) for path in arguments.runs if is_sweep(path)):
        waiting = [point.name for point in sweep.points if not sweep.directory(point).is_dir()]
        rest += [f"{sweep.path} is unfinished: there is no run of {name}" for name in waiting]
    code = 1 if faults or rest else 0
    if arguments.json:
        print_json({"runs": [str(run.path) for run in runs], "faults": faults, "unfinished": rest})
        return code
    for line in faults + rest:
        print(line)
    if not code:
        print(f"{len(runs)} {'run is' if len(runs) == 1 else 'runs are'} whole")
    return code
