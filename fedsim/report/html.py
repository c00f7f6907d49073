"""The HTML report of one or several runs: one self-contained file that opens anywhere, without a network.

Its charts are drawn by Plotly; without JavaScript the page shows pictures instead.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from fedsim.record.files import write_atomic
from fedsim.record.nodes import read_nodes
from fedsim.record.places import check_file, writing
from fedsim.report import pictures
from fedsim.report.compare import Comparison, cells, compare, header, notes, text_of, title
from fedsim.report.labels import flat
from fedsim.report.nodes import nodes_as_html
from fedsim.report.panels import panels
from fedsim.report.pictures import note
from fedsim.report.series import RunSeries
from fedsim.report.statistics import best, estimate

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
$body
<script type="application/json" id="data">$data</script>
<script>$plotly</script>
<script>
$script</script>
</body>
</html>
""")
CHART = """<noscript>{picture}</noscript>
<div id="{name}-controls" class="controls"></div>
<div id="{name}" class="chart" data-about="{about}"></div>"""
RUNS = '<div id="runs" class="controls runs" role="group" aria-label="runs"></div>'
NAMED = 6
"""Most runs that are named in the heading."""
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""Writes the same text, ten times as fast if PyYAML was built with libyaml."""
CLIENTS = "Of every client its own metric, the mean over seeds. A flat line of sorted values: all clients fare alike."
COSTS = "A point: a run at its end. On the front, with dark edges, are runs that no other one dominates in both."
SWEEP = "Final metrics by two settings; where several runs have the same two, the best one."


def write_report(
    run_dirs: Sequence[Path],
    path: Path,
    scope: str = "server/test",
    metric: str = "accuracy",
    target: float | None = None,
) -> Path:
    """Write the report of these runs (or folders of runs) to ``path``; the arguments are those of `compare`.

    Raises:
        RunError: see `compare`; or the file cannot be written.
    """
    check_file(path, "report.html")
    page = page_of(compare(run_dirs, scope, metric, target))
    with writing(path):
        write_atomic(path, page)
    return path


def page_of(comparison: Comparison, live: bool = False) -> str:
    """The page of a comparison; a live one asks its server for `update_of` every few seconds."""
    from plotly.offline import get_plotlyjs  # the script is 5 MB, and read where it is needed

    data = update_of(comparison)
    runs = [summary.run for summary in comparison.runs]
    heading = ", ".join(run.label for run in runs) if len(runs) <= NAMED else f"{len(runs)} runs"
    body = [
        f"<h1>{escape(heading)}</h1>",
        note(title(comparison)),
        f'<div id="summary">{data.pop("summary")}</div>',
        "<h2>Curves</h2>",
        RUNS,
        *_charts(comparison, data, live),
        *pictures.partitions(runs),
        *pictures.topologies(runs),
        *_differences(runs),
        "<h2>All metrics at the last evaluated round</h2>",
        _last_values(comparison),
        "<h2>Runs</h2>",
        *(_run(run, comparison.metric, comparison.lower) for run in runs),
    ]
    return PAGE.substitute(
        title=escape(heading), style=_file("page.css"), body="\n".join(body), data=_embedded({**data, "live": live}),
        plotly=get_plotlyjs(), script=_file("page.js"),
    )  # fmt: skip


def _charts(comparison: Comparison, data: Mapping[str, Any], live: bool) -> list[str]:
    """The charts, with pictures for readers without JavaScript; a live page has none, as it needs JavaScript anyway."""

    def chart(name: str, about: str, picture: Callable[[], str]) -> str:
        return CHART.format(name=name, about=escape(about), picture="" if live else picture())

    several = len(comparison.runs) > 1 and data["pareto"] is not None
    parts = [chart("curves", "curves of the chosen metric", lambda: pictures.of_curves(comparison))]
    if data["clients"]:
        own = chart("clients", "the chosen metric over clients", lambda: pictures.of_clients(comparison))
        parts += ["<h2>Clients</h2>", note(CLIENTS), own]
    if several:
        costs = chart("pareto", "final values against costs", lambda: pictures.of_costs(comparison))
        parts += ["<h2>Results against costs</h2>", note(COSTS), costs]
    if several and data["sweep"]:
        settings = list(data["sweep"])
        cells = chart("sweep", "final values by two settings", lambda: pictures.of_sweep(comparison, settings))
        parts += ["<h2>Results by settings</h2>", note(SWEEP), cells]
    return parts


def update_of(comparison: Comparison) -> dict[str, Any]:
    """What changes on a page while runs are under way: the data of `panels`, and ``summary``, which is HTML."""
    summary = [
        _warnings(comparison.warnings),
        "<h2>Summary</h2>",
        _table(header(comparison), cells(comparison)),
        note(notes(comparison)),
        *_under_way([summary.run for summary in comparison.runs]),
        *(nodes_as_html(read_nodes(summary.run.path)) for summary in comparison.runs),
    ]
    return {**panels(comparison), "summary": "\n".join(summary)}


def _file(name: str) -> str:
    return files("fedsim.report").joinpath("page", name).read_text(encoding="utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<ul class="warnings">{items}</ul>' if warnings else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    table = f'<table class="sortable"><thead><tr>{titles}</tr></thead><tbody>\n{lines}\n</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _under_way(runs: Sequence[RunSeries]) -> list[str]:
    """State of the seeds that have not finished."""
    rows = [
        [run.label, seed, status["state"], _last_round(run, seed), str(run.config.get("rounds", "–"))]
        for run in runs for seed, status in run.manifest["status"].items() if status["state"] != "finished"
    ]  # fmt: skip
    return ["<h2>Under way</h2>", _table(["run", "seed", "state", "evaluated round", "of"], rows)] if rows else []


def _last_round(run: RunSeries, seed: str) -> str:
    series = run.seeds.get(int(seed))
    return "-" if series is None else f"{series.cost['round'][-1]:.0f}"


def _differences(runs: Sequence[RunSeries]) -> list[str]:
    """The settings that differ between runs."""
    settings = {run.label: dict(flat(run.config)) for run in runs}
    names = dict.fromkeys(name for leaves in settings.values() for name in leaves)
    rows = [[name, *(str(leaves.get(name, "–")) for leaves in settings.values())] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return ["<h2>Settings that differ</h2>", _table(["setting", *settings], differing)] if differing else []


def _last_values(comparison: Comparison) -> str:
    runs = [summary.run for summary in comparison.runs]
    keys = sorted({key for run in runs for series in run.seeds.values() for key in series.last})
    rows = [[" ".join(key), *(_last_value(run, key) for run in runs)] for key in keys]
    return _table(["metric", *(run.label for run in runs)], rows)


def _last_value(run: RunSeries, key: tuple[str, str]) -> str:
    values = [series.last[key] for series in run.seeds.values() if key in series.last]
    return text_of(estimate(values) if values else None, nan=run.of_nan())


def _run(run: RunSeries, metric: str, lower: bool) -> str:
    config = yaml.dump(dict(run.config), Dumper=DUMPER, sort_keys=False, allow_unicode=True)
    parts = [
        f"<h3>{escape(run.label)}</h3>",
        note(f"{run.path}, started {run.manifest['created'][:16].replace('T', ' ')} UTC"),
        _table(
            ["seed", "last round", f"final {metric}", f"best {metric}", "status"],
            [_seed_row(run, seed, lower) for seed in run.manifest["status"]],
        ),
        f"<details><summary>Commands</summary><pre>{escape(_commands(run))}</pre></details>",
        pictures.of_timeline(run),
        f"<details><summary>Config</summary><pre>{escape(config)}</pre></details>",
        f"<details><summary>Manifest</summary><pre>{escape(json.dumps(run.manifest, indent=2))}</pre></details>",
    ]
    return "\n".join(parts)


def _commands(run: RunSeries) -> str:
    """Versions that made this run, and commands that repeat it."""
    path, versions = shlex.quote(str(run.path)), run.manifest.get("versions", {})
    commit = (run.manifest.get("git") or {}).get("commit")
    made = ", ".join([f"{name} {version}" for name, version in versions.items()] + [f"commit {commit}"] * bool(commit))
    return f"# {made}\nfedsim run {path}/config.yaml\nfedsim report {path}"


def _seed_row(run: RunSeries, seed: str, lower: bool) -> list[str]:
    status = run.manifest["status"][seed]
    state = ": ".join(text for text in (status["state"], status["detail"]) if text)
    series = run.seeds.get(int(seed))
    if series is None:
        return [seed, "-", "-", "-", state]
    return [seed, _last_round(run, seed), f"{series.value[-1]:.4g}", f"{best(series.value, lower):.4g}", state]
