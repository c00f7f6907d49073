"""Which of PyTorch's kernels compute a model: the layout of images and, on a CPU, the library of matrix products.

Results differ by rounding alone. What is fastest depends on the processor and on the model: on a CPU, images with
channels last suit networks of a few large convolutions, and cost one with many weights a copy of each weight's
gradient; MKL runs on some processors at less than half the speed of oneDNN. On a GPU, tensor cores read images with
channels last, and cuDNN transposes others for them.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsim.engine.model import Model
from fedsim.types import Batch

LAYOUTS, ONEDNN = {True: "channels last", False: "channels first"}, "oneDNN"
TURNS, TRIAL, NOISE = 12, 0.3, 0.97
"""Gradients that a comparison takes, and seconds after which three are enough; what is gained below 3 % is noise."""
ROUNDING = 1e-6
"""Greatest error of a float32 product, times its greatest entry; of one with operands in bfloat16 it is 1e-3."""


@dataclass(frozen=True)
class Kernels:
    """A choice of kernels; by default those of the reference.

    Attributes:
        channels_last: images are in this layout when a model with convolutions reads them; by default on a CPU.
        onednn: float32 matrix products are computed by oneDNN.
    """

    channels_last: bool | None = None
    onednn: bool = False

    @classmethod
    def of(cls, names: Sequence[str]) -> Kernels:
        """The kernels of these ``names``."""
        return cls(next((last for last, name in LAYOUTS.items() if name in names), None), ONEDNN in names)

    @property
    def names(self) -> list[str]:
        """What differs from the default."""
        layout = [] if self.channels_last is None else [LAYOUTS[self.channels_last]]
        return layout + [ONEDNN] * self.onednn

    @contextlib.contextmanager
    def used_by(self, models: Sequence[Model]) -> Iterator[None]:
        """Have some models computed by these kernels in this context; that of products is the whole process's."""
        layouts = [model.channels_last for model in models]
        with _by_onednn() if self.onednn else contextlib.nullcontext():
            try:
                if self.channels_last is not None:
                    for model in models:
                        model.channels_last = self.channels_last
                yield
            finally:
                for model, layout in zip(models, layouts, strict=True):
                    model.channels_last = layout


REFERENCE = Kernels()
KERNELS = [Kernels(last, onednn) for last in (None, *LAYOUTS) for onednn in (False, True)]


def variations(model: Model) -> list[dict[str, bool]]:
    """Settings, one at a time, that may be faster for a model than the default."""
    if model.device.type != "cpu":
        return [{"channels_last": True}] * model.convolutional
    products = model.dtype == torch.float32 and not model.numerics.bf16 and onednn_is_exact()
    return [{"channels_last": False}] * model.convolutional + [{"onednn": True}] * products


def fastest(model: Model, batch: Batch, varied: Sequence[dict[str, bool]]) -> Kernels:
    """Those of the kernels ``varied`` that compute the gradient of a minibatch faster, in turns with those before."""
    x, best = model.vector(), REFERENCE
    for change in varied:
        other = replace(best, **change)
        seconds: dict[Kernels, list[float]] = {best: [], other: []}
        start = time.perf_counter()
        while len(seconds[best]) < TURNS and (len(seconds[best]) < 3 or time.perf_counter() < start + TRIAL):
            for kernels, took in seconds.items():
                with kernels.used_by([model]):
                    begun = time.perf_counter()
                    model.gradient(x, batch)
                    if x.is_cuda:
                        torch.cuda.synchronize(x.device)
                    took.append(time.perf_counter() - begun)
        if min(seconds[other][1:]) < NOISE * min(seconds[best][1:]):   # the first of each prepares
            best = other
    return best


@functools.cache
def onednn_is_exact() -> bool:
    """Return whether oneDNN is there and computes products in float32.

    PyTorch calls it for products whose operands may be rounded to bfloat16. A processor without instructions for such
    products computes them in full.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    a, b = (torch.linspace(-1, 1, 64 * 512).sin_().mul_(k).sin_().view(64, 512) for k in (300, 700))
    exact = a.double() @ b.double().T
    with _by_onednn():
        error = (a @ b.T - exact).abs().max() / exact.abs().max()
    return bool(error < ROUNDING)


@contextlib.contextmanager
def _by_onednn() -> Iterator[None]:
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
