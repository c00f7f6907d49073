"""Nodes of a deployment as a table, as HTML, and in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from html import escape

from rich.box import SIMPLE
from rich.table import Table

from fedsim.record.nodes import NodeStatus

COLUMNS = ("client", "state", "last seen", "samples", "rounds", "seconds", "MB down", "MB up", "errors", "last error")
METRICS = {
    "connected": ("gauge", "1 if the node is connected."),
    "last_seen": ("gauge", "When its last response arrived, in seconds since 1970."),
    "samples": ("gauge", "Training samples of the node."),
    "rounds": ("counter", "Rounds in which the node has answered."),
    "seconds": ("counter", "Seconds of its own work."),
    "bytes_down": ("counter", "Bytes of messages to the node."),
    "bytes_up": ("counter", "Bytes of messages from the node."),
    "errors": ("counter", "Calls without a valid answer."),
}


def cells(node: NodeStatus, now: float) -> list[str]:
    """The cells of a node's row, for `COLUMNS`."""
    seen = f"{max(0.0, now - node.last_seen):,.0f} s ago" if node.last_seen else "never"
    sizes = [f"{size / 1e6:,.3f}" for size in (node.bytes_down, node.bytes_up)]
    state = "connected" if node.connected else "away"
    counts = [f"{node.samples:,}", f"{node.rounds:,}", f"{node.seconds:,.1f}", *sizes, f"{node.errors:,}"]
    return [str(node.client), state, seen, *counts, node.error]


def render_nodes(nodes: Iterable[NodeStatus]) -> Table:
    """A table for the terminal."""
    table = Table(*COLUMNS, box=SIMPLE)
    for column in table.columns[2:9]:
        column.justify = "right"
    for node in nodes:
        table.add_row(*cells(node, time.time()))
    return table


def nodes_as_html(nodes: Iterable[NodeStatus]) -> str:
    """A table for a page; empty without nodes."""
    rows = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(node, time.time()))}</tr>" for node in nodes]
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f"<h2>Nodes</h2>\n{body}" if rows else ""


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
