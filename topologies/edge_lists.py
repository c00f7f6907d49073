"""Edge lists: text files of two node labels per line, parsed strictly."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from topologies.errors import TopologyError

FORM = "expected one edge per line: two node labels separated by a space, and perhaps a weight"
REWRITE = "(an adjacency list or matrix must be rewritten in this form)"
OTHER = {"<": (".graphml", "GraphML"), "graph": (".gml", "GML"), "Creator": (".gml", "GML")}


class EdgeList(NamedTuple):
    """A parsed edge list.

    Attributes:
        edges: pairs of labels in the order of the file, with their attributes.
        weighted: the edges carry weights.
    """

    edges: list[tuple[str, str, dict[str, Any]]]
    weighted: bool


class _Line(NamedTuple):
    number: int
    labels: list[str]
    attributes: str


def parse_edges(text: str) -> EdgeList:
    """Parse an edge list; ``#`` starts a comment, and the attributes ``{...}`` that networkx writes may follow an edge.

    Raises:
        TopologyError: a line that is no edge, by its number.
    """
    lines = list(_lines(text))
    if not lines:
        raise TopologyError(f"no edges; {FORM}")
    for line in lines:
        _check_line(line)
    widths = {len(line.labels) for line in lines}
    if len(widths) > 1:
        odd = next(line for line in lines if len(line.labels) != len(lines[0].labels))
        other = f"line {lines[0].number} has {len(lines[0].labels)}"
        raise TopologyError(f"line {odd.number}: {len(odd.labels)} entries, but {other}; {FORM} {REWRITE}")
    _check_header(lines)
    if widths == {3}:
        _check_weights(lines)
    edges = [(line.labels[0], line.labels[1], _attributes(line)) for line in lines]
    return EdgeList(edges, any("weight" in attributes for *_, attributes in edges))


def _lines(text: str) -> Iterator[_Line]:
    for number, raw in enumerate(text.splitlines(), 1):
        content, brace, attributes = raw.split("#", 1)[0].partition("{")
        if content.strip() or brace:
            yield _Line(number, content.split(), brace + attributes)


def _attributes(line: _Line) -> dict[str, Any]:
    if not line.attributes:
        return {"weight": float(line.labels[2])} if len(line.labels) == 3 else {}
    try:
        found = ast.literal_eval(line.attributes.strip())
    except (SyntaxError, ValueError):
        found = None
    if not isinstance(found, dict):
        form = "expected a dict of attributes, such as {'weight': 0.5}"
        raise TopologyError(f"line {line.number}: {line.attributes[:40]!r} after the edge; {form}")
    return found


def _check_line(line: _Line) -> None:
    where, content = f"line {line.number}", " ".join(line.labels)
    for start, (suffix, kind) in OTHER.items():
        if line.number == 1 and (content.startswith(start) if start == "<" else line.labels[:1] == [start]):
            raise TopologyError(f"{where}: {content[:40]!r} is the beginning of {kind}; name the file {suffix}")
    if found := re.search(r"[,;|]", content):
        raise TopologyError(f"{where}: {content[:40]!r} has labels separated by {found[0]!r}; expected a space instead")
    if len(line.labels) < 2:
        raise TopologyError(f"{where}: {content[:40]!r} is a single label; {FORM}")
    if len(line.labels) > 3:
        raise TopologyError(f"{where}: {len(line.labels)} entries; {FORM} {REWRITE}")
    if len(line.labels) == 3 and not _is_number(line.labels[2]):
        raise TopologyError(f"{where}: {line.labels[2]!r} is no weight; {FORM}")
    if line.labels[0] == line.labels[1]:
        raise TopologyError(f"{where}: an edge from {line.labels[0]!r} to itself; remove the line")


def _check_header(lines: list[_Line]) -> None:
    """The first line does not hold column names over numbered nodes."""
    first, *others = ([_is_number(label) for label in line.labels[:2]] for line in lines)
    if others and not any(first) and all(map(all, others)):
        names = " ".join(lines[0].labels)
        raise TopologyError(f"line {lines[0].number}: {names!r} is a header, not an edge; begin it with #")


def _check_weights(lines: list[_Line]) -> None:
    """The third column holds weights, not a second neighbour."""
    nodes = {label for line in lines for label in line.labels[:2]}
    third = {line.labels[2] for line in lines}
    if len(third) > 1 and third <= nodes:
        raise TopologyError(
            f"line {lines[0].number}: {lines[0].labels[2]!r} is a weight or a second neighbour, as all entries of the"
            " third column are node labels too; remove the column, write weights as 1.0, or write one edge per line"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
