"""Cost of robust rules, on 50 rows of 1,000,000 floats by default.

Each rule against one Gram matrix of the rows (``X X^T``, one matrix product), and one pass over them (their plain sum).
Then Flag Aggregator on 60 rows of ResNet-18's size: seconds, and peak memory as a multiple of the stack's.

Times are the best of several repeats that take turns. Run: python -m benchmarks.robust (4.5 GB of memory, a minute).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.compress import D, turns
from fedsim.robust import (
    AKSEL,
    ARC,
    CAF,
    MDA,
    NNM,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clipping,
    CoordinateMedian,
    FlagAggregator,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    MoNNA,
    MultiKrum,
    NormMean,
    Phocas,
    TrimmedMean,
)
from fedsim.robust.rule import RobustRule


def rules(f: int) -> list[RobustRule]:
    """Every rule, for ``f`` Byzantine rows."""
    return [
        Mean(), NormMean(), CoordinateMedian(), TrimmedMean(f), MeaMed(f), Phocas(f), GeometricMedian(), Krum(f),
        MultiKrum(f), Bulyan(f), CenteredClipping(), MDA(f), CAF(f), MoNNA(f, own=0), AKSEL(f), FlagAggregator(),
        FlagAggregator(lam=1.0), NNM(TrimmedMean(f)), NNM(Krum(f)), Bucketing(Mean()), Clipping(Mean()),
        ARC(Mean(), f=f),
    ]  # fmt: skip


def label(rule: RobustRule) -> str:
    """Short name of a rule."""
    inner = getattr(rule, "rule", None)
    name = type(rule).__name__ + (", pairs" if getattr(rule, "lam", 0) else "")
    return name if inner is None else f"{name}, {label(inner)}"


def costs(n: int, d: int, f: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each rule, of a Gram matrix ("gram") and of a pass ("pass")."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    actions = {label(rule): (lambda rule=rule: rule(x)) for rule in rules(f)}
    return turns({"gram": lambda: x @ x.T, "pass": lambda: x.sum(0), **actions}, repeats)


def large(p: int, d: int) -> dict[str, float]:
    """Seconds of Flag Aggregator on ``p`` rows of length ``d``, and peak memory as a multiple of the stack's."""
    x = torch.empty(p, d).normal_(generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times = []
    for _ in range(3):
        start = time.perf_counter()
        FlagAggregator()(x)
        times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stack = x.numel() * x.element_size()
    return {"seconds": min(times), "stack_gib": stack / 2**30, "memory_over_stack": 1 + (after - before) / stack}


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser("python -m benchmarks.robust", description=__doc__)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--length", type=int, default=1_000_000)
    parser.add_argument("--f", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", type=int, nargs=2, default=(60, D), metavar=("ROWS", "LENGTH"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    big = large(*options.large)                            # first, so that its peak is the process's
    times = costs(options.rows, options.length, options.f, options.repeats)
    if options.json:
        print(json.dumps({"milliseconds": times, "flag_aggregator": big}))
        return
    title = f"{options.rows} x {options.length:,}, {torch.get_num_threads()} threads"
    table = Table("rule", "ms", "of a Gram matrix", "of a pass", box=SIMPLE, title=title)
    for name, took in times.items():
        table.add_row(name, f"{took:.0f}", f"{took / times['gram']:.2f}", f"{took / times['pass']:.1f}")
    Console(file=sys.stdout).print(table)
    rows, d = options.large
    print(f"Flag Aggregator, {rows} x {d:,}: {big['seconds']:.2f} s, {big['memory_over_stack']:.2f} stacks of memory")


if __name__ == "__main__":
    main()
