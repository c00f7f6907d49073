"""Speed of compression, on a vector of ResNet-18's size by default.

1. Selection: the exact Top-k of ``fedsim.compress`` against one ``torch.topk`` of the magnitudes, which leaves open
   which of equal ones it takes, and against copying the vector.
2. Indices: writing and reading the k selected indices in every index code, in megabytes of int64 indices a second.
3. Message: ``encode`` and ``decode`` of the whole Top-k message, and of the messages of other compressors.

Times are the best of several repeats that take turns. Run: python -m benchmarks.compress (1 GB of memory, under a
minute).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedsim.compress import QSGD, LowPrecision, Sign, TopK, bits, indices
from fedsim.compress.selection import largest
from fedsim.engine.machine import keep_freed_memory
from fedsim.values import Compressor

D = 11_181_642


@dataclass(frozen=True)
class Here:
    """A site outside a federation."""

    shapes: tuple[torch.Size, ...] = ()

    def key(self, tag: int = 0) -> Tensor:
        """See ``fedsim.values.Site``."""
        return torch.tensor(tag)


def turns(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of the fastest call of each action; the actions take turns."""
    fastest = dict.fromkeys(actions, float("inf"))
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            fastest[name] = min(fastest[name], 1e3 * (time.perf_counter() - start))
    return fastest


def selection(x: Tensor, k: int, repeats: int) -> dict[str, float]:
    """Part 1, in milliseconds."""
    size, copy = x.abs(), torch.empty_like(x)
    found, other = largest(x, k), size.topk(k, sorted=False).indices.sort().values
    assert torch.equal(size[found].sort().values, size[other].sort().values), "the selection is not exact"
    times = turns(
        {
            "copy": lambda: copy.copy_(x),
            "top_k": lambda: largest(x, k),
            "torch_topk": lambda: size.topk(k, sorted=False),
        },
        repeats,
    )
    return {
        **times,
        "torch_topk_over_top_k": times["torch_topk"] / times["top_k"],
        "top_k_over_copy": times["top_k"] / times["copy"],
    }


def packing(index: Tensor, d: int, repeats: int) -> dict[str, dict[str, float]]:
    """Part 2: bits an index, and megabytes of indices a second."""
    plain, result = index.numpy(), {}
    megabytes = plain.nbytes / 1e6
    for code in indices.CODES:
        written = indices.write(plain, d, code)
        buffer, size = bits.padded(written.data.tobytes()), written.size
        assert (indices.read(buffer, size, len(plain), d, code)[0] == plain).all()
        times = turns(
            {
                "write": lambda code=code: indices.write(plain, d, code),
                "read": lambda code=code, buffer=buffer, size=size: indices.read(buffer, size, len(plain), d, code),
            },
            repeats,
        )
        result[code] = {
            "bits": size / len(plain),
            "write": 1e3 * megabytes / times["write"],
            "read": 1e3 * megabytes / times["read"],
        }
    return result


def message(compressor: Compressor, x: Tensor, repeats: int) -> dict[str, float]:
    """Part 3 for one compressor, in milliseconds and bytes."""
    d, packed = len(x), compressor.compress(x, Here())
    data = compressor.encode(packed.parts, d)
    read = compressor.decode(data, d, x.dtype)
    assert torch.equal(compressor.unpack(read, d), packed.unpack())
    assert len(data) == int(compressor.nbytes(packed.parts, d))
    times = turns(
        {
            "compress": lambda: compressor.compress(x, Here()),
            "unpack": packed.unpack,
            "nbytes": lambda: compressor.nbytes(packed.parts, d),
            "encode": lambda: compressor.encode(packed.parts, d),
            "decode": lambda: compressor.decode(data, d, x.dtype),
        },
        repeats,
    )
    return {**times, "bytes": len(data), "times_shorter": x.nbytes / len(data)}


def table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    columns = list(next(iter(rows.values())))
    shown = Table("", *(c.replace("_", " ") for c in columns), title=title, title_justify="left", box=SIMPLE)
    for name, numbers in rows.items():
        shown.add_row(name, *(f"{n:,}" if isinstance(n, int) else f"{n:,.1f}" for n in numbers.values()))
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int, default=D, help="numbers of the vector (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.01, help="that is kept (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of every measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="that PyTorch may use (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    x = torch.randn(options.dimension, generator=torch.Generator().manual_seed(0))
    top = TopK(options.fraction)
    index, _ = top.compress(x, Here()).parts
    compressors: dict[str, Any] = {"Top-k": top, "sign": Sign(), "QSGD(4)": QSGD(), "fp8": LowPrecision("e4m3")}
    measured = {
        "selection": {f"k = {len(index):,}": selection(x, len(index), options.repeats)},
        "indices": packing(index, len(x), options.repeats),
        "messages": {name: message(c, x, max(1, options.repeats // 2)) for name, c in compressors.items()},
    }
    if options.json:
        print(json.dumps({"threads": options.threads, "torch": torch.__version__, "d": len(x), **measured}))
        return 0
    console = Console(width=120)
    console.print(table(f"Selection from {len(x):,} numbers, milliseconds", measured["selection"]))
    console.print(table("Indices, bits each and MB/s of int64", measured["indices"]))
    console.print(table("Messages, milliseconds", measured["messages"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
