"""A comparison as plain records, for JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from fedsim.report.compare import PAID, Comparison, costs_of


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat record for each run: ``final_mean``, ``final_half_width``, ``final_seeds``, ...; None for no number."""
    rows: list[dict[str, Any]] = []
    for summary in comparison.runs:
        row: dict[str, Any] = {"run": summary.run.label, "path": str(summary.run.path), "reached": summary.reached}
        names = ("final", "difference") if comparison.scope in PAID else ("final", "late", "best", "difference")
        estimates = {name: getattr(summary, name) for name in names}
        estimates |= {f"{cost}_to_target": summary.cost[cost] for cost in costs_of(comparison)}
        for name, value in estimates.items():
            row[f"{name}_mean"] = None if value is None or math.isnan(value.mean) else value.mean
            width = None if value is None else value.half_width
            row[f"{name}_half_width"] = None if width is None or math.isnan(width) else width
            row[f"{name}_seeds"] = 0 if value is None else value.seeds
        rows.append(row if comparison.scope in PAID else {**row, "difference_p": summary.p})
    return rows


def to_json(comparison: Comparison) -> str:
    """The comparison as strict JSON: its settings, its warnings, and `records` under ``runs``."""
    names = ("scope", "metric", "client", "target", "baseline", "warnings")
    settings = {name: getattr(comparison, name) for name in names}
    return json.dumps({**settings, "runs": records(comparison)}, indent=2, allow_nan=False)


def to_csv(comparison: Comparison) -> str:
    """`records` as CSV, with scope, metric and target in front, and the warnings at the end of every row."""
    settings = {name: getattr(comparison, name) for name in ("scope", "metric", "target")}
    warnings = "; ".join(comparison.warnings)
    rows = [{**settings, **record, "warnings": warnings} for record in records(comparison)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
