"""Kill drills: runs that are killed at random moments and resumed, compared with whole ones, byte for byte.

    python -m benchmarks.drills --kills 20

Each of the configurations runs once to its end; then one after the other is begun as a process, killed by SIGKILL
after a random part of the time that it takes, resumed by ``fedsim resume``, and killed again now and then. Prints
survived or not for each, with the seed that repeats it, and exits with 1 if one did not.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMON = "--partition.num_partitions 20 --rounds 150 --evaluation.every 5 --execution.checkpoint_every 7 --threads 1"
CONFIGURATIONS = {
    "FedAvg, loop": "--algorithm FedAvg --backend loop",
    "Scaffold, blocks": "--algorithm Scaffold --backend blocks --block_size 5",
    "FedAvg, Adam kept, EF21 up": "--algorithm FedAvg --local.optimizer Adam --local.optimizer.state keep --uplink EF21"
    " --uplink.compressor TopK --uplink.compressor.fraction 0.05 --backend loop",
    "GradientTracking, ring": "--algorithm GradientTracking --topology Static --topology.graph Ring --backend blocks"
    " --block_size 5",
}
FEDSIM = [sys.executable, "-m", "fedsim"]


def main() -> int:
    """Run the drills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="drills; 20 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the first drill; 0 by default")
    arguments = parser.parse_args()
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, tuple[bytes, float]] = {}
        for seed in range(arguments.seed, arguments.seed + arguments.kills):
            name = list(CONFIGURATIONS)[seed % len(CONFIGURATIONS)]
            if name not in whole:
                path, begun = Path(folder) / f"whole-{len(whole)}", time.perf_counter()
                subprocess.run(words(name, path), check=True, stdout=subprocess.DEVNULL)
                whole[name] = metrics(path), time.perf_counter() - begun
            survived, kills = drill(name, Path(folder) / f"drill-{seed}", random.Random(seed), *whole[name])
            lost += not survived
            result = "survived" if survived else "NOT SURVIVED"
            print(f"{result}: {name}, {kills} kills, --seed {seed} --kills 1", flush=True)
    print(f"{arguments.kills - lost} of {arguments.kills} survived")
    return 1 if lost else 0


def words(name: str, path: Path) -> list[str]:
    """Command of a whole run."""
    return [*FEDSIM, "run", *COMMON.split(), *CONFIGURATIONS[name].split(), "--output", str(path), "--quiet"]


def drill(name: str, path: Path, draw: random.Random, expected: bytes, seconds: float) -> tuple[bool, int]:
    """Kill and resume until the run ends; whether its metrics are the expected ones, and how often it was killed."""
    kills = 0
    while True:
        there = (path / "manifest.json").exists()
        command = [*FEDSIM, "resume", str(path), "--quiet"] if there else words(name, path)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                patience = draw.uniform(0.1, 0.9) * seconds if draw.random() < 0.7 or not kills else None
                if process.wait(timeout=patience) != 0:
                    return False, kills
                return metrics(path) == expected, kills
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                kills += 1


def metrics(path: Path) -> bytes:
    """All rows of a run."""
    return (path / "seed-0" / "metrics.jsonl").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
