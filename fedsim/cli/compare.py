"""``fedsim compare``, ``fedsim report`` and ``fedsim watch``: comparisons of runs."""

from __future__ import annotations

import argparse
import contextlib
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.cli.output import Arguments, add_json, console, print_json
from fedsim.errors import ConfigError, many
from fedsim.record.figures import kind_of
from fedsim.record.metrics import OF_NODES
from fedsim.record.places import check_file, writing
from fedsim.report import compare as comparing
from fedsim.report import records, tables, terminal
from fedsim.report.series import AXES, OF_CLIENTS, find_runs

TARGET = "value of the metric whose cost is counted; by default a round number near the best final value"


def compare(argv: Sequence[str]) -> int:
    """Print a comparison of runs, and write its curves and numbers."""
    parser, pictures = _compare_parser()
    arguments = parser.parse_args(argv)
    options: Any = {key: value for key, value in vars(arguments).items() if key in pictures}
    _check_flags(parser, arguments, options)
    columns = None if arguments.columns is None else _names(arguments.columns)
    if arguments.csv:
        check_file(arguments.csv, "table.csv")
    if arguments.plot:
        kind_of(arguments.plot)
    measured = comparing.compare(
        arguments.runs, arguments.scope or "server/test", arguments.metric, arguments.target, arguments.baseline,
        arguments.client, labels=dict(map(_label, arguments.label)),
    )  # fmt: skip
    comparing.columns_of(measured, columns)                # a wrong one fails before files are written
    if arguments.csv:
        with writing(arguments.csv):
            arguments.csv.write_text(records.to_csv(measured))
    if arguments.plot:
        _plot(measured, arguments.plot, options)
    if arguments.json:
        print(records.to_json(measured))
    elif arguments.latex:
        print(tables.to_latex(measured, columns), end="")
    elif arguments.markdown:
        print(tables.to_markdown(measured, columns), end="")
    else:
        console().print(terminal.render(measured, columns))
        if arguments.plot:
            print(arguments.plot)
    return 0


def _compare_parser() -> tuple[Arguments, set[str]]:
    """The parser of ``fedsim compare``, and the names of its options of pictures."""
    parser = _parser("compare", "Compare runs: final values, paired differences, and the cost of reaching a target.")
    parser.add_argument("--baseline", default="first", help="run to compare with: a label, best or first (default)")
    parser.add_argument("--client", type=int, help="compare the metric of this client, such as 7, on its own samples")
    parser.add_argument(
        "--label", action="append", default=[], metavar="RUN=NAME",
        help="name for a run, which is given by its directory or label",
    )
    names = "seeds, final, late, best, difference, p, round, megabytes, gradient_evaluations, simulated_seconds"
    parser.add_argument("--columns", metavar="NAMES", help=f"columns of the table, such as final,round: {names}")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print the comparison as JSON")
    forms.add_argument("--latex", action="store_true", help="print a LaTeX tabular (booktabs), best means in bold")
    forms.add_argument("--markdown", action="store_true", help="print a Markdown table, best means in bold")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="CSV file to write the numbers to")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture to draw: .png, .svg or .pdf")
    return parser, _add_options(parser.add_argument_group("options of --plot"))


def _check_flags(parser: Arguments, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Refuse flags that have no effect with others; ``options`` are those of pictures."""
    kind = options.get("kind", "curves")
    if misplaced := [key for key in options if key not in _taken_by(kind)]:
        parser.error(f"--{misplaced[0].replace('_', '-')} is no option of --kind {kind}")
    if options and not arguments.plot:
        parser.error(f"--{next(iter(options)).replace('_', '-')} is an option of --plot FILE, which is missing")
    if arguments.columns is not None and arguments.json:
        parser.error("--columns chooses those of a table, but --json prints all")
    if arguments.client is not None and arguments.scope and not arguments.scope.startswith(OF_NODES):
        parser.error(
            f"--scope {arguments.scope} has no values of single clients, and --client is {arguments.client}; leave out"
            f" one of them, or give --scope {', '.join(OF_CLIENTS)}"
        )


KINDS = {
    "curves": "the metric while runs are under way",
    "ribbons": "quantiles over clients of their own metric, by round",
    "pareto": "final metrics against costs, and the front of those that no run dominates",
    "heatmap": "final metrics of a sweep over two settings",
}


def _taken_by(kind: str) -> set[str]:
    """Options of a kind of picture."""
    common = {"x", "title", "xlabel", "ylabel", "footnote", "width", "height", "log_x", "log_y"}
    own = {"curves": common | {"target_line", "also"}, "ribbons": common, "pareto": common, "heatmap": {"settings"}}
    return {"kind", *own[kind]}


def _plot(measured: comparing.Comparison, path: Path, options: dict[str, Any]) -> None:
    """Draw a picture of the chosen kind. Modules are imported here, because Matplotlib takes long."""
    kind = options.pop("kind", "curves")
    if kind == "curves":
        from fedsim.report.curves import curves

        curves(measured, path, **{**options, "also": _names(options.get("also"))})
    elif kind == "ribbons":
        from fedsim.report.ribbons import ribbons

        ribbons(measured, path, **options)
    elif kind == "pareto":
        from fedsim.report.pareto import pareto

        pareto(measured, path, **options)
    else:
        from fedsim.report.sweep_maps import heat_map

        heat_map(measured, path, _names(options["settings"]) if "settings" in options else None)


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]


def _label(text: str) -> tuple[str, str]:
    """Run and name of ``RUN=NAME``; ``=`` may also be in a directory, a label (the last one splits) or a name."""
    cuts = [at for at, char in enumerate(text) if char == "="]
    if not cuts or not text[cuts[-1] + 1 :].strip():
        raise ConfigError(f"--label is {text!r}; expected RUN=NAME, such as runs/avg=FedAvg")
    cut = next((at for at in cuts if Path(text[:at]).is_dir()), cuts[-1])
    return text[:cut], text[cut + 1 :].strip()


def _add_options(group: Any) -> set[str]:
    """Add the arguments of the pictures, without defaults, and return their names."""

    def add(name: str, about: str, **settings: Any) -> str:
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=about, **settings)
        return name.replace("-", "_")

    switch = {"metavar": "auto|true|false", "type": _truth}
    kinds = "; ".join(f"{name}: {about}" for name, about in KINDS.items())
    return {
        add("kind", f"kind of picture (default: curves): {kinds}", choices=KINDS),
        add("also", "further metrics, each in a panel, such as 'loss,clients/train loss_mean'", metavar="NAMES"),
        add("settings", "both settings of a heat map, such as local.epochs,algorithm.lr (default: those that differ)"),
        add("x", "horizontal axis (default: round; of a Pareto front megabytes)", choices=AXES),
        add("title", "title; '' for none"),
        add("xlabel", "label of the horizontal axis"),
        add("ylabel", "label of the vertical axis"),
        add("footnote", "text below the axes, instead of the explanation of lines and bands; '' for none"),
        add("width", "width: a text column (3.4 inches) or a page (7 inches, default)", choices=("column", "page")),
        add("height", "height of the figure in inches", type=float),
        add("log-x", "logarithmic horizontal axis (default: auto, if costs differ by a factor over ten)", **switch),
        add("log-y", "logarithmic vertical axis (default: auto, if the metric spans a factor of 30)", **switch),
        add("target-line", "draw the target (default: true)", **switch),
    }


def _truth(text: str) -> bool | None:
    """Parse true, false or auto, which is None."""
    known = {"true": True, "false": False, "auto": None}
    if text not in known:
        raise argparse.ArgumentTypeError(f"expected auto, true or false, got {text!r}")
    return known[text]


def report(argv: Sequence[str]) -> int:
    """Write an HTML report of runs, and print its path."""
    parser = _parser("report", "Write a self-contained HTML report of runs: numbers, curves and settings.")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    add_json(parser, "report")
    arguments = parser.parse_args(argv)
    from fedsim.report.html import write_report  # deferred: Matplotlib is slow to import

    scope = arguments.scope or "server/test"
    written = write_report(arguments.runs, arguments.output, scope, arguments.metric, arguments.target)
    if arguments.json:
        print_json({"report": str(written)})
    else:
        print(written)
    return 0


def watch(argv: Sequence[str]) -> int:
    """Serve a live page of runs on this machine until it is interrupted."""
    parser = _parser("watch", "Show runs, sweeps and deployments in a browser while they are under way.")
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: a free one)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_json(parser, "watch")
    arguments = parser.parse_args(argv)
    from fedsim.report.live import LivePage, server_of  # deferred: Matplotlib is slow to import

    found = find_runs(arguments.runs)
    scope = arguments.scope or "server/test"
    settings = (arguments.runs, scope, arguments.metric, arguments.target)
    server, address = server_of(LivePage(lambda: comparing.compare(*settings), arguments.runs), arguments.port)
    if arguments.json:
        print_json({"address": address, "runs": len(found)})
    else:
        print(f"{many(len(found), 'run')} at {address}\nCtrl-C ends this page; runs go on.", flush=True)
    if arguments.open:
        webbrowser.open(address)
    with server, contextlib.suppress(KeyboardInterrupt):   # the usual end
        server.serve_forever()
    return 0


def _parser(command: str, about: str) -> Arguments:
    parser = Arguments(f"fedsim {command}", description=about)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run directory, or a folder of them")
    parser.add_argument("--metric", default="accuracy", help="metric to compare (default: accuracy)")
    parser.add_argument("--scope", help="model and samples of the metric (default: server/test)")
    parser.add_argument("--target", type=float, help=TARGET)
    return parser
