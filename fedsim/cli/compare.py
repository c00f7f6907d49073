"""``fedsim compare`` and ``fedsim report``: what finished runs measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsim.cli.output import console, writing
from fedsim.report import compare as comparing
from fedsim.report.series import AXES


def compare(argv: Sequence[str]) -> int:
    """Print a comparison of runs; write its curves and numbers."""
    parser = _parser("compare", "Compare runs: final values, paired differences, and the cost of reaching a target.")
    parser.add_argument("--baseline", default="first", help="run that others are compared to: a label, first or best")
    parser.add_argument("--json", action="store_true", help="the comparison as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers as CSV")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the metric: .png, .svg or .pdf")
    parser.add_argument("--x", default="round", choices=AXES, help="horizontal axis of --plot")
    arguments = parser.parse_args(argv)
    measured = comparing.compare(
        arguments.runs, arguments.scope, arguments.metric, arguments.target, arguments.baseline
    )
    if arguments.csv:
        with writing(arguments.csv):
            arguments.csv.write_text(comparing.to_csv(measured))
    if arguments.plot:
        from fedsim.report.curves import curves  # here, as Matplotlib takes its time

        with writing(arguments.plot):
            curves(measured, arguments.plot, arguments.x)
    if arguments.json:
        print(comparing.to_json(measured))
    else:
        console().print(comparing.render(measured))
    return 0


def report(argv: Sequence[str]) -> int:
    """Write an HTML report of runs; print its path."""
    parser = _parser("report", "Write one self-contained HTML file about runs: numbers, curves, settings.")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="file to write")
    arguments = parser.parse_args(argv)
    from fedsim.report.html import write_report  # here, as Matplotlib takes its time

    print(write_report(arguments.runs, arguments.output, arguments.scope, arguments.metric, arguments.target))
    return 0


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"fedsim {command}", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run directory, or a folder of them")
    parser.add_argument("--metric", default="accuracy", help="metric to compare")
    parser.add_argument("--scope", default="server/test", help="model and samples on which it was measured")
    parser.add_argument(
        "--target", type=float, help="count costs up to this value; by default a round number near the best final one"
    )
    return parser
