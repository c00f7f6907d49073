"""The pretended GPU: built by g++ when it is first needed, loaded before PyTorch; and what Python asks of CUDA."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import platformdirs

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "cuda.cpp", HERE / "gpu.h", HERE / "order.h"
KINDS = ("launch", "view", "alloc", "wait", "upload", "download")
HOOK = ctypes.PYFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_int64)
TOTAL = 141 * 10**9
"""Bytes of the pretended GPU."""
_library: Any = None


def unavailable() -> str:
    """Why there can be no pretended GPU here; empty if there can."""
    if any((_root() / "lib").glob("libtorch_cuda*")):
        return "this PyTorch has a real CUDA"
    return "" if shutil.which("g++") else "the pretended GPU needs g++"


def _root() -> Path:
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def build() -> Path:
    """The shared library, compiled once for each source and PyTorch."""
    written = b"".join(source.read_bytes() for source in SOURCES)
    key = hashlib.sha256(written + version("torch").encode()).hexdigest()[:16]
    out = Path(platformdirs.user_cache_dir("fedsim")) / "pretended" / f"{key}.so"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        root, own = _root(), out.with_suffix(f".{os.getpid()}")   # two processes may compile it at once
        include = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
        link = [f"-L{root}/lib", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{root}/lib"]
        options = ["-O1", "-std=c++20", "-fPIC", "-shared"]
        subprocess.run(["g++", *options, str(SOURCES[0]), "-o", str(own), *include, *link], check=True)
        own.replace(out)
    return out


def load() -> None:
    """Load the library, before PyTorch, which asks for CUDA when it is imported."""
    global _library
    assert not hasattr(sys.modules.get("torch"), "Tensor"), "PyTorch is there already"
    _library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)
    for name in ("held", "peak", "graph_size"):
        getattr(_library, f"pretended_{name}").restype = ctypes.c_int64
    _library.pretended_replay.restype = ctypes.c_char_p
    _library.pretended_record_stream.argtypes = ctypes.c_void_p, ctypes.c_int


def patch() -> None:
    """Answer what Python asks of CUDA."""
    import torch

    cuda: Any = torch.cuda
    assert not hasattr(torch._C, "_cuda_init"), "this PyTorch has a real CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = int(os.environ.get("PRETENDED_GPUS", "1")) if visible is None else len([v for v in visible.split(",") if v])
    answers = {
        "_initialized": True,
        "_lazy_init": lambda: None,
        "is_available": lambda: gpus > 0,
        "is_initialized": lambda: False,                   # there are no generators of the device to read
        "device_count": lambda: gpus,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: _library.pretended_wait(-1),
        "empty_cache": lambda: None,
        "manual_seed_all": lambda seed: None,
        "manual_seed": lambda seed: None,
        "mem_get_info": lambda device=None: (TOTAL - held(), TOTAL),
        "max_memory_allocated": lambda device=None: peak(),
        "memory_allocated": lambda device=None: held(),
        "reset_peak_memory_stats": lambda device=None: peak(reset=True) and None,
        "get_device_name": lambda device=None: "pretended",
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=TOTAL, name="pretended", major=9),
        "is_bf16_supported": lambda including_emulation=True: True,
        "set_sync_debug_mode": lambda mode: None,
        "CUDAGraph": CUDAGraph,
        "graph": Capture,
        "graph_pool_handle": lambda: (0, next(_numbers)),
        "Stream": Stream,
        "Event": Event,
        "stream": Entered,
        "current_stream": lambda device=None: Stream(number=_library.pretended_stream(-1)),
        "default_stream": lambda device=None: Stream(number=0),
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    torch.UntypedStorage.clone = _copied_storage           # type: ignore[method-assign]
    torch.Tensor.record_stream = _used_on                  # type: ignore[method-assign,assignment]
    torch.backends.cudnn.is_acceptable = lambda tensor: False  # type: ignore[attr-defined]


def _copied_storage(storage: Any) -> Any:
    """``UntypedStorage.clone``, for which Python's CPU build knows the CPU alone."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).clone().untyped_storage()


def _used_on(tensor: Any, stream: Stream) -> None:
    """``Tensor.record_stream``."""
    _library.pretended_record_stream(tensor.untyped_storage().data_ptr(), stream.number)


class CUDAGraph:
    """``torch.cuda.CUDAGraph``: what was launched between begin and end, done again on the same memory."""

    number: int | None = None

    def capture_begin(self, pool: tuple[int, int] | None = None, **_: Any) -> None:
        self._pool = pool or (0, next(_numbers))
        self.number = _library.pretended_capture(self._pool[1])

    def capture_end(self) -> None:
        _library.pretended_capture_end()

    def replay(self) -> None:
        if wrong := _library.pretended_replay(self.number):
            raise RuntimeError(wrong.decode())

    def pool(self) -> tuple[int, int]:
        return self._pool

    def reset(self) -> None:
        if self.number is not None:
            _library.pretended_graph_drop(self.number)
        self.number = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.reset()


class Capture:
    """``torch.cuda.graph``: it waits for the device, and captures on a stream that all captures share by default."""

    shared: Stream | None = None

    def __init__(
        self, graph: CUDAGraph, pool: tuple[int, int] | None = None, stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:  # fmt: skip
        if stream is None:
            Capture.shared = stream = Capture.shared or Stream()
        self.graph, self.pool, self.entered = graph, pool, Entered(stream)

    def __enter__(self) -> None:
        _library.pretended_wait(-1)
        self.entered.__enter__()
        self.graph.capture_begin(self.pool)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.graph.capture_end()
        if kind is not None:                               # and stays on its stream, as PyTorch's does
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.entered.__exit__()


_numbers = itertools.count(1)


class Stream:
    """``torch.cuda.Stream``: one of 32, by turns, as PyTorch has no more; ``order.h`` knows who waits for whom."""

    def __init__(self, device: Any = None, priority: int = 0, *, number: int | None = None) -> None:
        self.number = 1 + next(_numbers) % 32 if number is None else number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    def wait_stream(self, other: Stream) -> None:
        _library.pretended_stream_waits(self.number, other.number)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _library.pretended_wait(self.number)


class Entered:
    """``torch.cuda.stream``."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.before = _library.pretended_stream(-1 if self.stream is None else self.stream.number)

    def __exit__(self, *_: object) -> None:
        _library.pretended_stream(self.before)


class Event:
    """``torch.cuda.Event``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.number, self.stream = next(_numbers), Stream(number=0)

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or Stream(number=_library.pretended_stream(-1))
        _library.pretended_record_event(self.number, self.stream.number)

    def wait(self, stream: Stream | None = None) -> None:
        number = _library.pretended_stream(-1) if stream is None else stream.number
        _library.pretended_event_waits(self.number, number)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.stream.synchronize()

    def elapsed_time(self, other: Event) -> float:
        return 0.0


def held() -> int:
    """Bytes of the device's tensors."""
    return int(_library.pretended_held())


def peak(reset: bool = False) -> int:
    """Largest number of bytes since the last reset."""
    return int(_library.pretended_peak(int(reset)))


class Trace:
    """Operations on the device in this context, by kind, name and line of the product.

    Attributes:
        ops: number by (kind, name).
        where: number of those that cost, by (kind, name, file:line).
    """

    def __init__(self, places: bool = True) -> None:
        self.places = places
        self.ops: Counter[tuple[str, str]] = Counter()
        self.where: Counter[tuple[str, str, str]] = Counter()
        self._hook = HOOK(self._tell)

    def _tell(self, kind: int, name: bytes, size: int) -> None:
        key = KINDS[kind], name.decode()
        self.ops[key] += 1
        if self.places and key[0] not in ("view", "alloc"):
            self.where[*key, self._place()] += 1

    def _place(self) -> str:
        frame: Any = sys._getframe(1).f_back                # none in autograd's thread
        while frame is not None:
            name = frame.f_code.co_filename
            if ("/fedsim/" in name or "/algorithms/" in name) and "/torch/" not in name:
                return f"{'/'.join(name.split('/')[-3:])}:{frame.f_lineno}"
            frame = frame.f_back
        return "autograd's thread"

    def __enter__(self) -> Trace:
        _library.pretended_hook(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        _library.pretended_hook(ctypes.cast(None, HOOK))

    def count(self, *kinds: str) -> int:
        """Number of operations of these kinds."""
        return sum(n for (kind, _), n in self.ops.items() if kind in kinds)

    def places_of(self, *kinds: str) -> str:
        """Where the operations of these kinds come from, for a message."""
        rows = sorted((row for row in self.where.items() if row[0][0] in kinds), key=lambda row: -row[1])
        return "\n".join(f"{n:5d} {kind} {name} {place}" for (kind, name, place), n in rows)


def environment(gpus: int = 1) -> dict[str, str]:
    """Environment in which every process, and those that it starts, has the pretended GPUs."""
    path = os.pathsep.join([str(HERE / "site"), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    others = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**others, "PYTHONPATH": path, "PRETENDED_GPUS": str(gpus)}
