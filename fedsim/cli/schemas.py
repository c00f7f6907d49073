"""JSON Schemas of what the commands print with ``--json``, for scripts and agents."""

from __future__ import annotations

from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
TRUTH: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": ["number", "null"], "description": "null: none, or it diverged"}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _by_name(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


def _object(about: str, **properties: Schema) -> Schema:
    """An object that has these properties, and perhaps others in later versions."""
    return {"type": "object", "description": about, "properties": properties, "required": list(properties)}


SPREAD = _object("over nodes or links", min=NUMBER, mean=NUMBER, max=NUMBER)
ESTIMATE = _object("mean over seeds, and half the width of its 95 % interval", mean=NUMBER, half_width=NUMBER)
RECORD: Schema = {
    **_object("a run; estimates are NAME_mean, NAME_half_width, NAME_seeds", run=TEXT, path=TEXT, reached=WHOLE),
    "patternProperties": {"_(mean|half_width|p)$": NUMBER, "_seeds$": WHOLE},
}
RUN = _object(
    "a run that has ended", run={**TEXT, "description": "its directory"}, seeds=_list(WHOLE),
    final={**_by_name(_by_name(ESTIMATE)), "description": "last values, by scope and metric"},
)  # fmt: skip
BEST = _object("the best point", run=TEXT, path=TEXT, final=NUMBER, cost=_by_name(NUMBER))
SWEEP = _object(
    "a grid that has ended", sweep={**TEXT, "description": "its folder"}, best={"anyOf": [{"type": "null"}, BEST]},
    failed={**_by_name(TEXT), "description": "reasons, by point"}, runs=_list(RECORD),
)  # fmt: skip
CELL = _object(
    "a rule under an attack", rule=TEXT, attack=TEXT, f=WHOLE, alpha=NUMBER, lr=NUMBER, accuracy=NUMBER,
    half_width=NUMBER, worst=TRUTH,
)  # fmt: skip
NODE = _object(
    "a node; last_seen is in seconds since 1970, 0 for never; bytes are of the messages of all calls that it answered, "
    "those of evaluation too, which the ledger leaves out", client=WHOLE, connected=TRUTH, last_seen=NUMBER,
    samples=WHOLE, rounds=WHOLE, seconds=NUMBER, bytes_down=WHOLE, bytes_up=WHOLE, errors=WHOLE, error=TEXT,
)  # fmt: skip
OUTPUTS: dict[str, Schema] = {
    "run": RUN,
    "resume": {"anyOf": [RUN, SWEEP]},
    "sweep": SWEEP,
    "tune": _object("chosen settings by method, and the runs with them", chosen=_by_name(TEXT), runs=_list(RECORD)),
    "byzantine": _object("a grid of rules and attacks", grid=TEXT, cells=_list(CELL)),
    "deploy": RUN,
    "certificates": _object(
        "files of a federation", folder=TEXT, ca=TEXT, server=_list(TEXT), nodes={**_list(TEXT), "description": "keys"}
    ),
    "nodes": _object("the nodes of a deployment", run=TEXT, nodes=_list(NODE)),
    "list": {**_by_name(_by_name(TEXT)), "description": "descriptions, by section and name"},
    "partition": _object(
        "the heterogeneity card", scheme={"type": "object"}, n=WHOLE, total=WHOLE, sizes=SPREAD, hash=TEXT,
    ),
    "topology": _object(
        "a network in one round", topology={}, round=WHOLE, nodes=WHOLE, directed_edges=WHOLE, in_degree=SPREAD,
        out_degree=SPREAD, connected=TRUTH, symmetric=TRUTH, doubly_stochastic=TRUTH, spectral_gap=NUMBER,
        parameters=WHOLE, message_bytes=WHOLE, bytes_per_round=WHOLE,
    ),
    "timeline": _object("shares of a client's time, by what it does", picture=TEXT, shares=_by_name(NUMBER)),
    "compare": _object(
        "a comparison", scope=TEXT, metric=TEXT, target=NUMBER, baseline={"type": ["string", "null"]},
        warnings=_list(TEXT), runs=_list(RECORD),
    ),
    "export": {
        "anyOf": [
            _object("a model", file=TEXT, model=TEXT, round=WHOLE, numbers=WHOLE),
            _object("metrics for a tool", folder=TEXT, see={**TEXT, "description": "command that shows them"}),
        ]
    },
    "verify": _object(
        "what is wrong with runs, and which have not finished; exit code 1 if any",
        runs=_list(TEXT), faults=_list(TEXT), unfinished=_list(TEXT),
    ),
    "report": _object("a report", report={**TEXT, "description": "its file"}),
    "watch": _object("a live page, printed before it is served", address=TEXT, runs=WHOLE),
}  # fmt: skip
"""By command. ``schema`` prints JSON itself; ``node`` and ``superlink`` run until they are stopped, and print a log."""


def output(command: str) -> Schema:
    """Schema of what a command prints with ``--json``."""
    return {"$schema": DIALECT, "title": f"fedsim {command} --json", **OUTPUTS[command]}
