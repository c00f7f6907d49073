"""Pictures of a report page: what clients own, who is linked to whom, and for readers without JavaScript the charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import IO, Any

import numpy as np

from fedsim.errors import FedsimError, many
from fedsim.record import figures
from fedsim.record.owned import FILE, read_owned
from fedsim.report.compare import Comparison, costs_of
from fedsim.report.curves import curves
from fedsim.report.pareto import pareto
from fedsim.report.ribbons import MOST_RUNS, ribbons
from fedsim.report.series import AXES, RunSeries
from fedsim.report.sweep_maps import heat_map
from fedsim.report.timeline_picture import timeline

MANY = 20
"""Number of runs above which a report has fewer pictures."""
MOST = 6
"""Most partitions, and most topologies, that are drawn."""
MOST_NODES = 300
"""Most nodes of a topology that is drawn."""


def note(text: str) -> str:
    """A remark of the page."""
    return f'<p class="note">{escape(text)}</p>'


def image(about: str, draw: Callable[[IO[bytes]], object]) -> str:
    """An image element, or the reason why there is none. It is not inline SVG, as two drawings may have equal ids."""
    drawing = io.BytesIO()
    try:
        draw(drawing)
    except FedsimError as error:                           # e.g. no timing was recorded
        return note(str(error))
    data = base64.b64encode(drawing.getvalue()).decode()
    return f'<img alt="{escape(about)}" src="data:image/svg+xml;base64,{data}">'


def of_curves(comparison: Comparison) -> str:
    """The metric against its costs; for many runs, which take long, only against rounds."""
    axes = ["round", "megabytes", *(["simulated_seconds"] if "simulated_seconds" in costs_of(comparison) else [])]
    drawn = [
        image(f"{comparison.metric} against {AXES[x]}", lambda file, x=x: curves(comparison, file, x, format="svg"))  # type: ignore[misc]
        for x in (axes if len(comparison.runs) <= MANY else axes[:1])
    ]
    return '<div class="curves">\n' + "\n".join(drawn) + "\n</div>"


def of_clients(comparison: Comparison) -> str:
    """Quantiles over clients of the metric, if they were measured."""
    if len(comparison.runs) > MOST_RUNS:
        return ""
    return image("quantiles over clients by round", lambda file: ribbons(comparison, file, format="svg"))


def of_costs(comparison: Comparison) -> str:
    """Final metrics against megabytes."""
    return image("final metrics against megabytes", lambda file: pareto(comparison, file, format="svg"))


def of_sweep(comparison: Comparison, settings: Sequence[str]) -> str:
    """Final metrics over the first two settings that differ."""
    return image("final metrics over two settings", lambda file: heat_map(comparison, file, settings[:2], format="svg"))


def of_timeline(run: RunSeries) -> str:
    """The first rounds, of a run with a clock."""
    if not any(run.path.glob("seed-*/timeline.csv")):
        return ""
    return image("what each client does in the first rounds", lambda file: timeline(run.path, file, format="svg"))


def partitions(runs: Sequence[RunSeries]) -> list[str]:
    """What the clients own, of the first seed of each run; equal partitions are drawn once."""
    found: dict[str, list[RunSeries]] = {}
    for run in runs:
        if run.seeds and (run.path / f"seed-{_first(run)}" / FILE).is_file():
            shared = run.manifest.get("partition_hash", {}).get(str(_first(run)), run.path)
            found.setdefault(str(shared), []).append(run)
    return _figures("Partition", "what each client owns", list(found.values()), _draw_partition, len(runs))


def topologies(runs: Sequence[RunSeries]) -> list[str]:
    """Who is linked to whom, of finished runs without a server; equal topologies are drawn once."""
    found: dict[str, list[RunSeries]] = {}
    for run in runs:
        if run.seeds and (run.path / f"seed-{_first(run)}" / "edges.csv").is_file():
            found.setdefault(str((run.config.get("topology"), run.manifest.get("clients"))), []).append(run)
    return _figures("Topology", "who is linked to whom", list(found.values()), _draw_topology, len(runs))


def _first(run: RunSeries) -> int:
    return min(run.seeds)


def _figures(
    title: str, about: str, groups: list[list[RunSeries]], draw: Callable[[RunSeries, IO[bytes]], object], runs: int
) -> list[str]:
    """A section with a figure for each group of runs, which share it."""
    if not groups:
        return []
    parts = [f"<h2>{title}</h2>", '<div class="pictures">']
    for group in groups[:MOST]:
        first, labels = group[0], ", ".join(run.label for run in group)
        whose = f"of seed {_first(first)}" + (f": {labels}" if len(group) < runs else " of all runs" * (runs > 1))
        picture = image(f"{about}, {whose}", lambda file, first=first: draw(first, file))  # type: ignore[misc]
        parts.append(f"<figure>{picture}<figcaption>{escape(title)} {escape(whose)}.</figcaption></figure>")
    left_out = [note(f"{len(groups) - MOST} more are not drawn.")] if len(groups) > MOST else []
    return [*parts, *left_out, "</div>"]


def _draw_partition(run: RunSeries, file: IO[bytes]) -> None:
    from fedsim.record.owned_picture import draw_owned

    owned = read_owned(run.path / f"seed-{_first(run)}")
    assert owned is not None
    whole = None if owned.counts is None else owned.counts.sum(axis=0)
    settings = run.config.get("partition", {})
    name = settings.get("name", "") if isinstance(settings, Mapping) else settings
    title = f"{str(name).rsplit('.', 1)[-1]}: {many(len(owned.sizes), 'client')}, {many(owned.sizes.sum(), 'sample')}"
    figures.write(file, lambda: draw_owned(owned.sizes, owned.counts, whole, title, owned.classes), "svg")


def _draw_topology(run: RunSeries, file: IO[bytes]) -> None:
    from scipy.sparse import coo_array

    from fedsim.report.topology_picture import draw_graph  # slow: networkx

    links = np.loadtxt(run.path / f"seed-{_first(run)}" / "edges.csv", np.int64, delimiter=",", skiprows=1, ndmin=2)
    n = int(run.manifest.get("clients") or links[:, :2].max() + 1)
    if n > MOST_NODES:
        raise FedsimError(f"the topology of {run.label} has {n:,} nodes, and is drawn up to {MOST_NODES}")
    w = coo_array((links[:, 2].astype(float), (links[:, 1], links[:, 0])), shape=(n, n)).tocsr()
    sent = np.bincount(links[:, 0], links[:, 2], minlength=n) / 1e6
    values, label = sent, "megabytes that the node sent"
    key = ("nodes/test", "accuracy")
    if key in (of := run.recorded[_first(run)].clients):
        last = of[key].last()
        values, label = np.array([last.get(node, np.nan) for node in range(n)]), "test accuracy of the node's own model"
    names = run.manifest.get("node_names") or None
    name = _graph(run.config.get("topology"))
    title = f"{name}: {many(n, 'node')}, {many(len(links), 'directed link')} used in the run"
    draw_graph(w, name, values, label, title, file, names, "svg")


def _graph(topology: Any) -> str:
    """Class of the graph, or of a schedule without one."""
    while isinstance(topology, Mapping) and "base" in topology:
        topology = topology["base"]
    if isinstance(topology, Mapping):
        topology = topology.get("graph", topology)
    name = topology.get("name", "") if isinstance(topology, Mapping) else topology
    return str(name).rsplit(".", 1)[-1]
