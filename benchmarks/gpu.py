"""What a GPU does, in one run of minutes: correctness first, then counts, then seconds beside what was predicted.

    python -m benchmarks.gpu                        # steps 1 to 13, results/gpu.json after each
    python -m benchmarks.gpu --only 1-7,13          # some steps
    python -m benchmarks.gpu --dry-run              # tiny sizes on the pretended GPU of the tests: finds typing errors

It needs neither files nor jsonargparse, pooch or Ray. No step stops those after it: each has a budget of seconds, and
what it raises is written in its place.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

MOST = 500
"""Seconds of all steps: none begins after them, but for the table."""

BUDGETS = {
    "env": 20, "correct": 60, "reference": 40, "same bits": 40, "waits": 15, "launches": 20, "speed": 120,
    "precision": 30, "reduction": 15, "memory": 25, "ray": 60, "mps": 25, "table": 5,
}  # fmt: skip
"""Seconds of each step, in order."""

PREDICTED = {
    "speed/logistic 100x1/blocks": (0.006, 0.009),
    "speed/mcmahan 10x60/loop": (0.165, 0.165),
    "speed/mcmahan 10x60/graphed 1": (0.075, 0.075),
    "speed/mcmahan 10x60/graphed 4": (0.025, 0.035),
    "speed/cifar-lenet 10x10/loop": (0.034, 0.034),
    "speed/cifar-lenet 10x10/graphed 1": (0.015, 0.018),
    "speed/cifar-lenet 10x10/graphed 4": (0.010, 0.012),
    "speed/resnet18 FedAvg 10x50/loop": (0.4, 0.95),
    "speed/resnet18 FedAvg 10x50/graphed 1": (0.4, 0.4),
    "speed/resnet18 FedAvg 10x50/graphed 4": (0.15, 0.2),
    "speed/resnet18 FedSpeed 10x50/loop": (0.8, 2.0),
    "speed/resnet18 FedSpeed 10x50/graphed 1": (0.8, 0.8),
    "speed/resnet18 FedSpeed 10x50/graphed 4": (0.3, 0.4),
    "reduction/uniform_of": (0.0, 0.001),
    "memory/upload GB/s": (45.0, 55.0),
}
"""Least and most, for one H200 in float32, written before anything had run on one."""


class OverBudgetError(BaseException):
    """A step took longer than its budget; no exception of the product's, which it would mend."""


def chosen(text: str) -> list[str]:
    """Names of the steps that "1-7,13" chooses."""
    names, found = list(BUDGETS), set[int]()
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= len(names)):
            raise argparse.ArgumentTypeError(f"{part!r}: expected steps from 1 to {len(names)}, such as 1-7,13")
        found |= set(range(int(first), int(last) + 1))
    return [name for number, name in enumerate(names, 1) if number in found]


def step(run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Result, or what was raised, and seconds."""

    def over(*_: Any) -> None:
        raise OverBudgetError(f"over its budget of {seconds:g} seconds")

    begin, before = time.perf_counter(), signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        found: dict[str, Any] = {"result": run()}
    except (Exception, OverBudgetError) as error:          # the next step may work
        found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(limit=-3)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return found | {"seconds": round(time.perf_counter() - begin, 2)}


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Values of nested dictionaries, by path."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {key: v for k, branch in tree.items() for key, v in flat(branch, f"{name}/{k}" if name else str(k)).items()}


def table(steps: dict[str, Any]) -> list[str]:
    """Lines of every measured number, with the prediction if there is one."""
    measured = flat({name: found.get("result", found.get("error")) for name, found in steps.items() if name != "table"})
    lines = [f"{'measured':44s} {'value':>14s}  predicted"]
    for name, value in measured.items():
        shown = f"{value:14.6g}" if isinstance(value, int | float) else f"{value!s:>14.60s}"
        low, high = PREDICTED.get(name, (None, None))
        lines.append(f"{name:44s} {shown}" + ("" if low is None else f"  {low:g} to {high:g}"))
    return lines


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=chosen, default=list(BUDGETS), help="steps, such as 1-7,13; by default all")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the pretended GPU if there is no other")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"), help="file of the results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the steps; 1 if one of them raised."""
    given = parsed(arguments)
    if given.dry_run and "torch" not in sys.modules:       # the pretended GPU must be there before PyTorch
        from tests.pretended import device

        if not device.unavailable():
            device.load()
            device.patch()
    import torch

    if not torch.cuda.is_available():
        print("no GPU here; --dry-run takes the pretended one of the tests, which needs g++", file=sys.stderr)
        return 2
    from benchmarks.gpu_steps import STEPS

    given.out.parent.mkdir(parents=True, exist_ok=True)
    begin, done = time.perf_counter(), dict[str, Any]()
    for name in given.only:
        left = MOST - (time.perf_counter() - begin)
        if name == "table":
            print("\n".join(table(done)), flush=True)
        elif left < 5:
            done[name] = {"error": f"not begun: {MOST} seconds are over", "seconds": 0.0}
        else:
            done[name] = step(partial(STEPS[name], given.dry_run), min(BUDGETS[name], left))
            print(f"{name:12s}{done[name]['seconds']:8.1f} s  {done[name].get('error', 'ok'):.100s}", flush=True)
        given.out.write_text(json.dumps(done, indent=1, default=str))
    return int(any("error" in found for found in done.values()))


if __name__ == "__main__":
    sys.exit(main())
