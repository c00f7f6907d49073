"""What a round costs on the pretended GPU: operations of one round, and by differences those of one local step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fedsim.engine.blocks import Blocks
from fedsim.engine.captured import Graphs
from fedsim.engine.federation import Meter
from fedsim.engine.graphed import Graphed
from fedsim.engine.local_work import LocalWork
from tests.contract.cases import ALGORITHMS, federation, rounds
from tests.pretended.device import Trace

FEW, MANY = 2, 6
"""Local steps of the two rounds that are compared."""
UPLOADS, WAITS = ("upload",), ("wait", "download")


class Counts(NamedTuple):
    """Numbers of operations: of a round without its steps, and of each local step of its whole cohort."""

    round: dict[str, float]
    step: dict[str, float]
    trace: Trace


def traced(algorithm: str, steps: int, *, streams: int = 0, size: int = 0, **settings: Any) -> Trace:
    """Operations of the last of three rounds of this many local steps, which are graphs if there are ``streams``, or
    blocks of a ``size``.
    """
    work = LocalWork(batch_size=4, steps=steps, weight_decay=0.01, clip_norm=0.3)
    fed = federation(work=work, dtype=torch.float32, device="cuda", **settings)
    fed = replace(fed, backend=Graphed(streams=streams)) if streams else fed
    fed = replace(fed, backend=Blocks(size, graphs=Graphs())) if size else fed
    if size:                                               # what any round captures
        list(rounds(ALGORITHMS[algorithm], fed))
    meter = Meter(fed)
    meter.measures = False                                 # contractions are part of an evaluation
    trace = Trace()
    states = rounds(ALGORITHMS[algorithm], fed, meter=meter)
    for _ in range(3):
        next(states)
    with trace:
        next(states)
    return trace


def counted(algorithm: str, **settings: Any) -> Counts:
    """Counts of the last round, taken apart."""
    few, many = (traced(algorithm, steps, **settings) for steps in (FEW, MANY))
    more, less = numbers(many), numbers(few)
    step = {name: (more[name] - less[name]) / (MANY - FEW) for name in more}
    return Counts({name: less[name] - FEW * step[name] for name in less}, step, many)


def numbers(trace: Trace) -> dict[str, int]:
    """Launches, copies to the device, copies back for which nobody waits, and waits."""
    queued = sum(n for (kind, name), n in trace.ops.items() if kind == "download" and "(asynchronous)" in name)
    waits = trace.count(*WAITS) - queued
    return {"launches": trace.count("launch"), "uploads": trace.count(*UPLOADS), "queued": queued, "waits": waits}
