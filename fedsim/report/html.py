"""The HTML report of one or several runs: one self-contained file, without scripts, that opens anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import yaml

from fedsim.errors import RunError
from fedsim.record.files import write_atomic
from fedsim.report.compare import Comparison, cells, compare, costs_of, header, notes, text_of, title
from fedsim.report.curves import curves
from fedsim.report.series import AXES, RunSeries
from fedsim.report.statistics import best, estimate

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1c2330; --soft: #5b6472; --line: #dfe3e8; --accent: #0072b2; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p.note { color: var(--soft); font-size: .875rem; margin: .5rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
ul.warnings { background: #fff6e5; border-left: 4px solid #e69f00; padding: .75rem 1rem .75rem 2rem; margin: 1rem 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
.curves img { width: 100%; height: auto; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem; margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; } summary:focus-visible { outline: 2px solid var(--accent); }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.45; margin: .5rem 0; }
</style>
</head>
<body>
$body
</body>
</html>
""")


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
    comparison = compare(run_dirs, scope, metric, target)
    heading = ", ".join(summary.run.label for summary in comparison.runs)
    body = [
        f"<h1>{escape(heading)}</h1>",
        _note(title(comparison)),
        _warnings(comparison.warnings),
        "<h2>Summary</h2>",
        _table(header(comparison), cells(comparison)),
        _note(notes(comparison)),
        "<h2>Curves</h2>",
        _curves(comparison),
        "<h2>All metrics at the last evaluated round</h2>",
        _last_values(comparison),
        "<h2>Runs</h2>",
        *(_run(summary.run, metric, comparison.lower) for summary in comparison.runs),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, PAGE.substitute(title=escape(heading), body="\n".join(body)))
    except OSError as error:
        raise RunError(f"cannot write the report {path}: {error.strerror}; choose another file") from error
    return path


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<ul class="warnings">{items}</ul>' if warnings else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def _curves(comparison: Comparison) -> str:
    axes = [x for x in AXES if x != "simulated_seconds" or x in costs_of(comparison)]
    return '<div class="curves">\n' + "\n".join(_image(comparison, x) for x in axes) + "\n</div>"


def _image(comparison: Comparison, x: str) -> str:
    """An image element; as an image and not as inline SVG, so that equal ids in two drawings cannot meet."""
    drawing = io.BytesIO()
    try:
        curves(comparison, drawing, x, format="svg")
    except RunError as error:  # e.g. no timing was recorded
        return _note(str(error))
    data = base64.b64encode(drawing.getvalue()).decode()
    return f'<img alt="{escape(comparison.metric)} against {escape(AXES[x])}" src="data:image/svg+xml;base64,{data}">'


def _last_values(comparison: Comparison) -> str:
    runs = [summary.run for summary in comparison.runs]
    keys = sorted({key for run in runs for series in run.seeds.values() for key in series.last})
    rows = [[" ".join(key), *(_last_value(run, key) for run in runs)] for key in keys]
    return _table(["metric", *(run.label for run in runs)], rows)


def _last_value(run: RunSeries, key: tuple[str, str]) -> str:
    values = [series.last[key] for series in run.seeds.values() if key in series.last]
    return text_of(estimate(values) if values else None)


def _run(run: RunSeries, metric: str, lower: bool) -> str:
    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    parts = [
        f"<h3>{escape(run.label)}</h3>",
        _note(f"{run.path}, created {run.manifest['created']}"),
        _table(
            ["seed", "last round", f"final {metric}", f"best {metric}", "status"],
            [_seed_row(run, seed, lower) for seed in run.manifest["status"]],
        ),
        f"<details><summary>Config</summary><pre>{escape(config)}</pre></details>",
        f"<details><summary>Manifest</summary><pre>{escape(json.dumps(run.manifest, indent=2))}</pre></details>",
    ]
    return "\n".join(parts)


def _seed_row(run: RunSeries, seed: str, lower: bool) -> list[str]:
    status = run.manifest["status"][seed]
    state = ": ".join(text for text in (status["state"], status["detail"]) if text)
    series = run.seeds.get(int(seed))
    if series is None:
        return [seed, "-", "-", "-", state]
    last_round, final = series.cost["round"][-1], series.value[-1]
    return [seed, f"{last_round:.0f}", f"{final:.4g}", f"{best(series.value, lower):.4g}", state]
