"""``fedsim verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.cli.output import Arguments, add_json, print_json
from fedsim.controller.verify import verify as faults_of
from fedsim.report.series import find_runs


def verify(argv: Sequence[str]) -> int:
    """Print what is wrong with runs; 1 if anything is."""
    parser = Arguments("fedsim verify", description="Check that runs are whole: hashes, order and gaps of rows, seeds.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a folder of several")
    add_json(parser, "verify")
    arguments = parser.parse_args(argv)
    runs = find_runs(arguments.runs)
    faults = [fault for run in runs for fault in faults_of(run.path)]
    if arguments.json:
        print_json({"runs": [str(run.path) for run in runs], "faults": faults})
        return 1 if faults else 0
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{len(runs)} {'run is' if len(runs) == 1 else 'runs are'} whole")
    return 1 if faults else 0
