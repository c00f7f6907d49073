"""The steps of ``benchmarks.gpu``: functions of ``tiny``, sizes for a dry run, that return numbers by name."""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import DFedSAM, FedAvg, FedSpeed, Scaffold
from fedsim.clients import cohort
from fedsim.engine.blocks import Blocks
from fedsim.engine.captured import Graphs
from fedsim.engine.federation import Federation
from fedsim.engine.graphed import Graphed
from fedsim.engine.kernels import Kernels
from fedsim.engine.local_work import LocalWork, Shards
from fedsim.engine.loop import Loop
from fedsim.engine.memory import MEMORIES
from fedsim.engine.model import Model
from fedsim.engine.numerics import FULL, Numerics
from fedsim.experiment.precision import PRECISIONS
from fedsim.messages.mixing import mix_rows
from fedsim.messages.sums import weighted_sum
from fedsim.models import MLP, CifarLeNet, LeNet5, Logistic, McMahanCNN, ResNet18
from fedsim.models.losses import cross_entropy
from fedsim.seeds import uniform_of
from topologies import Ring, Static

ROOT = Path(__file__).parent.parent
GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
ALGORITHMS: dict[str, Any] = {
    "FedAvg": FedAvg(lr=0.05), "momentum": FedAvg(lr=0.05, momentum=0.9), "Scaffold": Scaffold(lr=0.05),
    "FedSpeed": FedSpeed(lr=0.05), "DFedSAM": DFedSAM(lr=0.05),
}  # fmt: skip


def federation(
    network: Any, shape: tuple[int, ...], n: int, samples: int, work: LocalWork, backend: Any,
    device: str = "cuda", dtype: torch.dtype = torch.float32, memory: str = "device", numerics: Numerics = FULL,
) -> Federation:  # fmt: skip
    """``n`` clients with ``samples`` random images each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n * samples, *shape, generator=generator).to(device, dtype)
    y = torch.randint(0, 10, (n * samples,), generator=generator).to(device)
    torch.manual_seed(0)
    model = Model(network.build(shape, 10), cross_entropy, device=device, dtype=dtype, numerics=numerics)
    shards = Shards(x, y, np.arange(n + 1) * samples)
    return Federation(model, shards, work, 0, backend, topology=Static(Ring()), memory=MEMORIES[memory](model.device))


def rounds(fed: Federation, algorithm: Any, cohorts: int | Sequence[np.ndarray]) -> tuple[Tensor, list[float]]:
    """The model after rounds of some cohorts, or so many of everybody (of gossip, those of all nodes), and the seconds
    of each.
    """
    state, seconds = algorithm.init(fed.model.vector(), cohort(fed, 0)), []
    for round, ids in enumerate([None] * cohorts if isinstance(cohorts, int) else cohorts, 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        state = algorithm.round(state, cohort(fed, round, ids))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    x = state.x
    return x if isinstance(x, Tensor) else torch.stack([x[i] for i in range(x.n)]), seconds


def timed(run: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds, after one run to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def env(tiny: bool) -> dict[str, Any]:
    """Versions, and ceilings: memory bandwidth, products, microseconds of a launch."""
    n, side = (2**16, 64) if tiny else (2**28, 8192)
    a, m = torch.zeros(n, device="cuda"), torch.randn(side, side, device="cuda")
    found: dict[str, Any] = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "device": torch.cuda.get_device_name(),
        "triton": find_spec("triton") is not None,
        "copy GB/s": 8 * n / timed(a.clone) / 1e9,
        "float32 TFLOP/s": 2 * side**3 / timed(lambda: m @ m) / 1e12,
    }  # fmt: skip
    with Numerics("tf32").products():
        found["tf32 TFLOP/s"] = 2 * side**3 / timed(lambda: m @ m) / 1e12
    half = m.bfloat16()
    found["bf16 TFLOP/s"] = 2 * side**3 / timed(lambda: half @ half) / 1e12
    small, many = torch.zeros(1, device="cuda"), 10 if tiny else 1000
    found["launch us"] = 1e6 / many * timed(lambda: [small.add_(1) for _ in range(many)])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(many):
            small.add_(1)
    return found | {"launch in a graph us": 1e6 / many * timed(graph.replay)}


def correct(tiny: bool) -> dict[str, Any]:
    """The tests that compare a GPU with the CPU; warnings are errors, as of nondeterministic operations."""
    if missing := [name for name in ("pytest", "hypothesis", "xdist", "pytest_timeout") if find_spec(name) is None]:
        return {"skipped": f"without {', '.join(missing)}"}
    if tiny:
        return {"skipped": "make test runs them on the pretended GPU"}
    options = ["-q", "-n", "8", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests/contract/test_devices.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"exit": done.returncode, "last": done.stdout.strip().splitlines()[-1:], "tail": done.stdout[-3000:]}


def small_cases(tiny: bool) -> list[tuple[str, Any, tuple[int, ...]]]:
    cases: list[tuple[str, Any, tuple[int, ...]]] = [("mlp", MLP(hidden=(16,)), GRAY), ("lenet5", LeNet5(), GRAY)]
    return cases[:1] if tiny else [*cases, ("resnet18", ResNet18(), COLOUR)]


def reference(tiny: bool) -> dict[str, Any]:
    """Largest difference to the CPU after two rounds in double precision, relative to the model's largest number."""
    found = {}
    for name, network, shape in small_cases(tiny):
        for title, algorithm in ALGORITHMS.items():
            for backend in (Loop(), Blocks(3)):
                ends = [
                    rounds(
                        federation(network, shape, 4, 12, LocalWork(5, steps=2), backend, device, torch.float64),
                        algorithm, 2,
                    )[0].cpu()
                    for device in ("cpu", "cuda")
                ]  # fmt: skip
                gap = (ends[0] - ends[1]).abs().max() / ends[0].abs().max()
                found[f"{name} {title} {type(backend).__name__}"] = float(gap)
    worst = max(found.values())
    if worst > 1e-9:
        raise AssertionError(f"differs from the CPU: { {name: gap for name, gap in found.items() if gap > 1e-9} }")
    return {"largest": worst, "cases": len(found)}


def same_bits(tiny: bool) -> dict[str, Any]:
    """Whether a second run, in CUDA graphs after the loop (on streams) or blocks, and one with memories of the host,
    have the same bits.
    """
    different = []
    for name, network, shape in small_cases(tiny):
        for title, algorithm in ALGORITHMS.items():
            for backend, other in ((Loop(), Graphed(streams=2)), (Blocks(3), Blocks(3, graphs=Graphs()))):
                ends = [
                    rounds(federation(network, shape, 4, 12, LocalWork(5, steps=3), b, memory=m), algorithm, 2)[0]
                    for b, m in ((backend, "device"), (other, "device"), (other, "host"))
                ]
                if not all(torch.equal(ends[0], end) for end in ends[1:]):
                    different.append(f"{name} {title} {type(backend).__name__}")
    if different:
        raise AssertionError(f"other bits the second time: {', '.join(different)}")
    return {"cases": 2 * len(ALGORITHMS) * len(small_cases(tiny))}


def waits(tiny: bool) -> dict[str, Any]:
    """Times that the host waits in a round; the pretended GPU counts 1."""
    found = {}
    for name, backend in (("loop", Loop()), ("blocks", Blocks(4))):
        fed = federation(LeNet5(), GRAY, 4, 20, LocalWork(5, steps=3), backend)
        algorithm = FedAvg(lr=0.1)
        state = algorithm.round(algorithm.init(fed.model.vector(), cohort(fed, 0)), cohort(fed, 1))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                algorithm.round(state, cohort(fed, 2))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found[name] = len([w for w in heard if "synchroniz" in str(w.message)])
    return found


def launches(tiny: bool) -> dict[str, Any]:
    """Kernels of a round of one client with one more step, and their microseconds."""
    from torch.profiler import ProfilerActivity, profile

    found = {}
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (torch.version.cuda is not None)
    for name, network, shape in small_cases(tiny):
        counts = []
        for steps in (1, 2):
            fed = federation(network, shape, 1, 100, LocalWork(50, steps=steps), Loop())
            rounds(fed, FedAvg(lr=0.1), 1)
            with profile(activities=activities) as seen:
                rounds(fed, FedAvg(lr=0.1), 1)
            kernels = [e for e in seen.events() if "CUDA" in str(e.device_type)]
            counts.append((len(kernels), sum(getattr(e, "device_time", 0.0) for e in kernels)))
        found[name] = {"kernels": counts[1][0] - counts[0][0], "us": counts[1][1] - counts[0][1]}
    return found


def speed(tiny: bool) -> dict[str, Any]:
    """Seconds of a round, the median of some after one to warm up, and its peak of memory, by backend and streams."""
    cut = LocalWork(50, steps=50, clip_norm=10.0, weight_decay=1e-3)
    resnet, avg = ResNet18(stem="imagenet"), FedAvg(lr=0.1)
    each = Loop(), *(Graphed(streams=n) for n in (1, 2, 4, 8))
    in_ten, in_hundred = ((Blocks(size), Blocks(size, graphs=Graphs())) for size in (10, 100))
    cases = {
        "logistic 100x1": (Logistic(), GRAY, 100, 60, LocalWork(60, steps=1), avg, in_hundred),
        "mlp 100x5": (MLP(), GRAY, 100, 100, LocalWork(20), avg, (*each, *in_hundred)),
        "mcmahan 10x60": (McMahanCNN(), GRAY, 10, 600, LocalWork(10), avg, (*each, *in_ten)),
        "cifar-lenet 10x10": (CifarLeNet(), COLOUR, 10, 500, LocalWork(50), avg, (*each, *in_ten)),
        "resnet18 FedAvg 10x50": (resnet, COLOUR, 10, 500, cut, avg, each),
        "resnet18 FedSpeed 10x50": (resnet, COLOUR, 10, 500, cut, FedSpeed(lr=0.1), each),
    }
    found: dict[str, Any] = {}
    for name, (network, shape, n, samples, work, algorithm, backends) in list(cases.items())[: 2 if tiny else None]:
        if tiny:
            n, samples, work = 2, 4, replace(work, batch_size=2, steps=1)
        for backend in backends:
            way = f"{name}/{'graphed ' * bool(getattr(backend, 'graphs', None))}{type(backend).__name__.lower()}"
            way += f" {backend.streams}" if isinstance(backend, Graphed) else ""
            gc.collect()                                   # graphs of the one before
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                fed = federation(network, shape, n, samples, work, backend)
                seconds = rounds(fed, algorithm, 2 if "resnet" in name else 4)[1]
            except torch.OutOfMemoryError as error:
                found[way] = f"out of memory: {error!s:.60s}"
                continue
            found[way] = statistics.median(seconds[1:])
            found[f"{way} peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def precisions(tiny: bool) -> dict[str, Any]:
    """Seconds of a gradient of ResNet-18 at 50 images, by precision and layout, and its distance from float32's; and of
    20 local steps as graphs.
    """
    network, shape, size, steps = (LeNet5(), GRAY, 2, 1) if tiny else (ResNet18(stem="imagenet"), COLOUR, 50, 20)
    found: dict[str, Any] = {}
    exact: Tensor | None = None
    for precision in PRECISIONS:
        for kernels in (Kernels(), Kernels(channels_last=True)):
            name = ", ".join([precision, *kernels.names])
            work, backend = LocalWork(size, steps=steps), Graphed(kernels=kernels)
            fed = federation(network, shape, 1, size, work, backend, numerics=Numerics(precision))
            key = torch.zeros(size, dtype=torch.int64, device="cuda")
            x, batch = fed.model.vector(), fed.shards.rows(0)._replace(key=key)
            with kernels.used_by([fed.model]):
                g = fed.model.gradient(x, batch)
                found[name] = timed(partial(fed.model.gradient, x, batch), steps)
            exact = g if exact is None else exact
            found[f"{name}, from float32"] = float((g - exact).norm() / exact.norm())
            found[f"{name}, {steps} steps graphed"] = rounds(fed, FedAvg(lr=0.01), 3)[1][-1]
    return found


def reduction(tiny: bool) -> dict[str, Any]:
    """Seconds of a mean, an exchange, random numbers, and the largest coordinates."""
    d, nodes, numbers = (1_000, 4, 1_000) if tiny else (11_200_000, 100, 10**8)
    rows, w = torch.randn(10, d, device="cuda"), torch.full((10,), 0.1, device="cuda", dtype=torch.float64)
    stack = torch.randn(nodes, d // 11, device="cuda")
    mixing = Static(Ring()).matrix(1, 0, nodes)
    key = torch.tensor(5, device="cuda")
    return {
        "weighted_sum 10 x d": timed(lambda: weighted_sum(rows, w)),
        "mix_rows ring": timed(lambda: mix_rows(mixing, stack)),
        "uniform_of": timed(lambda: uniform_of(key, numbers)),
        "topk 1 %": timed(lambda: rows[0].abs().topk(d // 100)),
    }


def memory(tiny: bool) -> dict[str, Any]:
    """Bandwidth between host and device, and rounds of SCAFFOLD whose memories are on either."""
    n = 2**12 if tiny else 2**28
    pinned, there = torch.empty(n, dtype=torch.uint8, pin_memory=True), torch.empty(n, dtype=torch.uint8, device="cuda")
    found: dict[str, Any] = {
        "upload GB/s": n / timed(lambda: there.copy_(pinned, non_blocking=True)) / 1e9,
        "download GB/s": n / timed(lambda: pinned.copy_(there, non_blocking=True)) / 1e9,
    }
    clients, chosen, drawn = (4, 2, 2) if tiny else (2000, 100, 5)
    generator = np.random.default_rng(0)
    once = np.split(generator.permutation(clients), clients // chosen)   # then every client has a memory
    cohorts = [np.sort(ids) for ids in once + [generator.choice(clients, chosen, replace=False) for _ in range(drawn)]]
    for place in ("device", "host"):
        fed = federation(CifarLeNet(), COLOUR, clients, 4, LocalWork(4, steps=2), Loop(), memory=place)
        torch.cuda.reset_peak_memory_stats()
        seconds = rounds(fed, Scaffold(lr=0.05), cohorts)[1]
        found[f"scaffold, memory {place}"] = statistics.median(seconds[-drawn:])
        found[f"scaffold, memory {place}, first rounds"] = statistics.median(seconds[:-drawn])
        found[f"scaffold, memory {place} peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def ray(tiny: bool) -> dict[str, Any]:
    """Bytes and seconds of actors that share the GPU."""
    if find_spec("ray") is None or find_spec("jsonargparse") is None:
        return {"skipped": "without ray or jsonargparse"}
    if tiny:
        return {"skipped": "the tests run Ray on pretended GPUs"}
    import tempfile

    from fedsim import Evaluation, Execution, Experiment, FixedSize, run
    from fedsim.experiment.execution import Ray
    from fedsim.partition import IidPartitioner

    experiment = Experiment(
        Scaffold(lr=0.1), partition=IidPartitioner(8), model=MLP(hidden=(16,)), local=LocalWork(16, steps=3),
        sampling=FixedSize(0.5), rounds=3, evaluation=Evaluation(every=1), execution=Execution(device="cuda"),
    )  # fmt: skip
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {"here": None, "1 actor": Ray(actors=1, gpus=1), "4 actors": Ray(actors=4, gpus=0.25)}
        for kind in ("blocks", "graphed"):
            own = {"block_size": 2} if kind == "blocks" else {"block_size": 0, "client_threads": 4}
            bytes_of = {}
            for place, settings in places.items():
                there = {"backend": kind} if settings is None else {"backend": "ray", "ray": settings}
                begin = time.perf_counter()
                made = run(experiment.with_execution(**there, **own), output=f"{folder}/{kind} {place}", progress=False)
                found[f"{kind}, {place} seconds"] = time.perf_counter() - begin
                bytes_of[place] = (made.seed_path(0) / "metrics.jsonl").read_bytes()
            found |= {f"{kind}, {place} same bytes": data == bytes_of["here"] for place, data in bytes_of.items()}
    return found


def mps(tiny: bool) -> dict[str, Any]:
    """Whether processes could share the GPU through MPS; nothing is started."""
    return {"nvidia-cuda-mps-control": shutil.which("nvidia-cuda-mps-control") is not None}


STEPS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "env": env, "correct": correct, "reference": reference, "same bits": same_bits, "waits": waits,
    "launches": launches, "speed": speed, "precision": precisions, "reduction": reduction, "memory": memory, "ray": ray,
    "mps": mps,
}  # fmt: skip
