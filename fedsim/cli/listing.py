"""``fedsim list`` and ``fedsim schema``: what settings there are."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence

from fedsim.cli.output import Arguments, width
from fedsim.cli.schemas import OUTPUTS, output
from fedsim.experiment.config.described import aliases, catalogue
from fedsim.experiment.config.names import CATALOGUES
from fedsim.experiment.config.remembered import remembered
from fedsim.record.sinks.sink import SINKS


def _components(kind: str) -> Callable[[], dict[str, str]]:
    def described() -> dict[str, str]:
        short = {name: f"alias of {stands_for}" for name, stands_for in aliases(kind).items()}
        return {name: each.about for name, each in catalogue(kind).items()} | short

    return described


def _data() -> dict[str, str]:
    from fedsim.data import available
    from fedsim.problems import PROBLEMS

    return {**available(), **{name: f"problem: {catalogue('data')[name].about}" for name in PROBLEMS}}


def _metrics() -> dict[str, str]:
    from fedsim.experiment.measures import metrics_by_name

    return metrics_by_name()


SECTIONS: dict[str, Callable[[], dict[str, str]]] = {
    "algorithms": _components("algorithm"),
    "data": lambda: remembered("list of data", _data),
    **{of.section: _components(kind) for kind, of in CATALOGUES.items()},
    "metrics": lambda: remembered("list of metrics", _metrics),
    "sinks": lambda: SINKS,
}


def list_names(argv: Sequence[str]) -> int:
    """Print names with their one-line descriptions."""
    parser = Arguments("fedsim list", description="List the components that settings can name.")
    parser.add_argument("section", nargs="?", choices=SECTIONS, help="kind of component to list; all kinds by default")
    parser.add_argument("--json", action="store_true", help="print JSON: section, name, description")
    arguments = parser.parse_args(argv)
    found = {name: SECTIONS[name]() for name in ([arguments.section] if arguments.section else SECTIONS)}
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    longest = max(len(name) for names in found.values() for name in names)
    for section, names in found.items():
        print(f"{section}:")
        for name, description in names.items():
            print(_entry(name, description, longest, width()))
    return 0


def print_schema(argv: Sequence[str]) -> int:
    """Print the JSON Schema of an experiment's file, or of a command's output."""
    about = (
        "Print the JSON Schema of the files that fedsim run reads, by which editors complete and check them; or that of"
        " what a command prints with --json."
    )
    parser = Arguments("fedsim schema", description=about)
    kinds = ", ".join(OUTPUTS)
    parser.add_argument("command", nargs="?", choices=OUTPUTS, metavar="COMMAND", help=f"one of {kinds}")
    parser.add_argument("--json", action="store_true", help="as every command has; a schema is JSON anyway")
    command = parser.parse_args(argv).command
    if command is None:
        from fedsim.experiment.config.schema import schema  # deferred: it imports PyTorch
    print(json.dumps(output(command) if command else schema(), indent=1, ensure_ascii=False))
    return 0


def _entry(name: str, description: str, longest: int, columns: int | None) -> str:
    """A name and its description, with a hanging indent; on one line in a file or pipe, where ``grep`` reads it."""
    indent = longest + 4
    if columns is None:
        return f"  {name:<{longest}}  {description}"
    if columns < indent + 24:                              # below the name, where beside it is too narrow
        lines = textwrap.wrap(description, max(columns - 6, 20), break_on_hyphens=False)
        return "\n".join([f"  {name}", *(" " * 6 + line for line in lines)])
    first, *others = textwrap.wrap(description, columns - indent, break_on_hyphens=False) or [""]
    return "\n".join([f"  {name:<{longest}}  {first}", *(" " * indent + line for line in others)])
