"""``fedsim timeline``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from fedsim.cli.output import Arguments, add_json, console, print_json


def timeline(argv: Sequence[str]) -> int:
    """Draw the timeline of a run, and print how the clients spend their time."""
    about = "Draw what each client of a run with a clock does: compute, send, wait, be absent."
    parser = Arguments("fedsim timeline", description=about)
    parser.add_argument("run", type=Path, metavar="DIR", help="a run directory")
    parser.add_argument(
        "--output", type=Path, default=Path("timeline.png"), metavar="FILE",
        help="picture to draw: .png, .svg or .pdf (default: timeline.png)",
    )
    parser.add_argument("--seed", type=int, help="which seed of the run (default: the first)")
    parser.add_argument("--since", type=float, default=0.0, metavar="S", help="simulated seconds at which it begins")
    parser.add_argument("--until", type=float, metavar="S", help="at which it ends (default: after six tasks of each)")
    add_json(parser, "timeline")
    arguments = parser.parse_args(argv)
    from fedsim.report import timeline_picture as picture  # deferred: Matplotlib is slow to import

    shares = picture.timeline(
        arguments.run, arguments.output, seed=arguments.seed, since=arguments.since, until=arguments.until
    )
    if arguments.json:
        print_json({"picture": str(arguments.output), "shares": dict(picture.names(shares))})
        return 0
    table = Table("a client", "share of its time", box=None, header_style="bold")
    table.columns[1].justify = "right"
    for name, share in picture.names(shares).items():
        table.add_row(name, f"{share:.1%}")
    console().print(table)
    print(arguments.output)
    return 0
