"""Nodes of a deployment as a table for the terminal, as HTML, and in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from html import escape

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedsim.record.nodes import NodeStatus

COLUMNS = ("client", "state", "seen", "samples", "rounds", "work s", "MB down", "MB up", "errors", "last error")
TRAFFIC = "MB: of all answered calls, those of evaluation too, which the ledger leaves out."
AGES = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
METRICS = {
    "connected": ("gauge", "1 if the node is connected."),
    "last_seen": ("gauge", "When its last response arrived, in seconds since 1970."),
    "samples": ("gauge", "Training samples of the node."),
    "rounds": ("counter", "Rounds in which the node has answered."),
    "seconds": ("counter", "Seconds of its own work."),
    "bytes_down": ("counter", "Bytes of messages to the node, those of evaluation too."),
    "bytes_up": ("counter", "Bytes of messages from the node."),
    "errors": ("counter", "Calls without a valid answer."),
}


def cells(node: NodeStatus, now: float) -> list[str]:
    """The cells of a node's row, for `COLUMNS`."""
    sizes = [_number(size / 1e6, 3) for size in (node.bytes_down, node.bytes_up)]
    state = "online" if node.connected else "away"
    counts = [f"{node.samples:,}", f"{node.rounds:,}", _number(node.seconds, 1), *sizes, f"{node.errors:,}"]
    return [str(node.client), state, _ago(now - node.last_seen) if node.last_seen else "never", *counts, node.error]


def _ago(seconds: float) -> str:
    """An age in its largest unit."""
    size, unit = next((each for each in AGES if seconds >= each[0]), AGES[-1])
    return f"{max(0.0, seconds) // size:,.0f} {unit} ago"


def _number(value: float, digits: int) -> str:
    """A number with ``digits`` decimals, or fewer if it is large, since a column is narrow."""
    return f"{value:,.{digits if value < 100 else min(digits, 1) if value < 1e4 else 0}f}"


def render_nodes(nodes: Iterable[NodeStatus]) -> Group:
    """A table for a terminal of 80 columns, with an explanation and the last errors below it."""
    listed, now = list(nodes), time.time()
    table = Table(box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(COLUMNS[:-1]):
        table.add_column(name, justify="left" if place == 1 else "right", no_wrap=True)
    for node in listed:
        table.add_row(*map(Text, cells(node, now)[:-1]))   # as Text, so that rich reads no markup in a node's words
    errors = [Text(f"client {node.client}, last error: {node.error}") for node in listed if node.error]
    return Group(table, Text(TRAFFIC), *errors)


def nodes_as_html(nodes: Iterable[NodeStatus]) -> str:
    """A table for an HTML page; empty without nodes."""
    rows = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(node, time.time()))}</tr>" for node in nodes]
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f"<h2>Nodes</h2>\n{body}\n<p>{TRAFFIC}</p>" if rows else ""


def prometheus(nodes: Mapping[str, Iterable[NodeStatus]]) -> str:
    """The nodes by run, in Prometheus' text format (exposition format 0.0.4)."""
    lines = []
    listed = {run: list(of) for run, of in nodes.items()}
    for name, (kind, about) in METRICS.items():
        full = f"fedsim_node_{name}{'_total' if kind == 'counter' else ''}"
        lines += [f"# HELP {full} {about}", f"# TYPE {full} {kind}"]
        for run, of in listed.items():
            label = run.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines += [f'{full}{{run="{label}",client="{n.client}"}} {float(getattr(n, name)):.17g}' for n in of]
    return "\n".join(lines) + "\n"
