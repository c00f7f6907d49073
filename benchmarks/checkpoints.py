"""Seconds to save and to read the memories of a million clients: python -m benchmarks.checkpoints."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from fedsim.record.blocks import History, read
from fedsim.record.checkpoint import load_latest, save


def main() -> None:
    """Save all memories, then three times those that have changed; read them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--numbers", type=int, default=170, help="in each memory, float32; 170 by default")
    parser.add_argument("--changed", type=int, default=1000, help="memories that change between checkpoints; 1000")
    parser.add_argument("--root", type=Path, help="folder on the disk to measure; that of temporary files by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n, d, some, history = arguments.clients, arguments.numbers, arguments.changed, History()
    rows = {i: torch.randn(d) for i in range(n)}
    with tempfile.TemporaryDirectory(dir=arguments.root) as folder:
        for round in range(4):
            path, seconds, cpu = Path(folder), time.perf_counter(), time.process_time()
            save(path, round, {}, {}, memories={"h": rows}, history=history)
            print(f"saved {some if round else n:,}: {_since(seconds, cpu)}", flush=True)
            rows = {**rows, **{(round * 7919 + 97 * k) % n: torch.randn(d) for k in range(some)}}
        seconds, cpu = time.perf_counter(), time.process_time()
        loaded = load_latest(path)
        assert loaded is not None
        read(loaded.memories["h"], rows[0], torch.device("cpu"), lambda t: t)
        print(f"read {n:,}: {_since(seconds, cpu)}")


def _since(seconds: float, cpu: float) -> str:
    return f"{time.perf_counter() - seconds:.2f} s, of the processor {time.process_time() - cpu:.2f} s"


if __name__ == "__main__":
    main()
