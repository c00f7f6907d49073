"""``fedsim list``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from fedsim.data import available
from fedsim.experiment.config.names import catalogue, summary
from fedsim.problems import PROBLEMS


def _components(kind: str) -> Callable[[], dict[str, str]]:
    return lambda: {name: summary(cls) for name, cls in catalogue(kind).items()}


SECTIONS: dict[str, Callable[[], dict[str, str]]] = {
    "algorithms": _components("algorithm"),
    "data": lambda: {**available(), **{name: f"problem: {summary(make)}" for name, make in PROBLEMS.items()}},
    "partitions": _components("partition"),
    "skews": _components("skew"),
    "models": _components("model"),
    "samplings": _components("sampling"),
    "schedules": _components("schedule"),
    "compressors": _components("compressor"),
    "uplinks": _components("uplink"),
    "downlinks": _components("downlink"),
    "topologies": _components("topology"),
    "graphs": _components("graph"),
}


def list_names(argv: Sequence[str]) -> int:
    """Print names with their one-line descriptions."""
    parser = argparse.ArgumentParser("fedsim list", description="List what is available, as settings name it.")
    parser.add_argument("section", nargs="?", choices=SECTIONS, help="only this kind; all by default")
    parser.add_argument("--json", action="store_true", help="as JSON: section, name, description")
    arguments = parser.parse_args(argv)
    found = {name: SECTIONS[name]() for name in ([arguments.section] if arguments.section else SECTIONS)}
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    width = max(len(name) for names in found.values() for name in names)
    for section, names in found.items():
        print(f"{section}:")
        for name, description in names.items():
            print(f"  {name:<{width}}  {description}")
    return 0
