"""What the floating-point type of a model leaves open: the precision of its products, and whether a GPU repeats bits.

Parameters, gradients and all that algorithms do with them stay in the model's type. In TF32 the operands of float32
products have 10 bits of mantissa in place of 23; in bfloat16 (7 bits) so do activations, as ``torch.autocast`` has it.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedsim.tree import converted

T = TypeVar("T")


@dataclass(frozen=True)
class Numerics:
    """How a model computes.

    Args:
        precision: of products and convolutions: "float32" for that of the model's type; "tf32" on a GPU; "bf16" for
            forward passes under autocast.
        strict: on a GPU, an operation without a deterministic kernel is an error.
    """

    precision: str = "float32"
    strict: bool = False

    @property
    def bf16(self) -> bool:
        """Whether forward passes are under autocast."""
        return self.precision == "bf16"

    def forward(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Context of a forward pass and its loss, but not of the backward pass."""
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """Context of a forward pass and of its backward pass: what algorithms compute has full precision."""
        return _tf32() if self.precision == "tf32" else contextlib.nullcontext()

    def attention(self, device: torch.device, draws: bool) -> contextlib.AbstractContextManager[Any]:
        """Context of a forward pass in training whose attention repeats its bits on a GPU, and draws what it drops
        where that is seen, if it ``draws``.

        Fused kernels have deterministic gradients only where PyTorch refuses all others, and where it warns of them,
        none. They draw within.
        """
        fused = device.type != "cuda" or (self.strict and not draws)
        return contextlib.nullcontext() if fused else _unfused()

    def each(self, parts: Iterable[T]) -> Iterable[T]:
        """Items that are each computed within ``products``, and used outside of it."""
        return _each_in_tf32(iter(parts)) if self.precision == "tf32" else parts

    def loss(self, loss: Callable[[Any, Any], Tensor], dtype: torch.dtype) -> Callable[[Any, Any], Tensor]:
        """A per-sample loss that is given, and gives, what has the type of the model."""
        return LossInFull(loss, dtype) if self.bf16 else loss

    def outputs(self, outputs: Any, dtype: torch.dtype) -> Any:
        """Outputs of a module with tensors in bfloat16 as those of the model's type."""
        return in_full(outputs, dtype) if self.bf16 else outputs


FULL = Numerics()
"""All in the model's own type."""


@dataclass(frozen=True)
class LossInFull:
    """A loss of outputs in bfloat16, in a type of more digits."""

    loss: Callable[[Any, Any], Tensor]
    dtype: torch.dtype

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Losses ``[B]``."""
        losses: Tensor = in_full(self.loss(in_full(outputs, self.dtype), targets), self.dtype)
        return losses


def in_full(outputs: Any, dtype: torch.dtype) -> Any:
    """Tensors, tuples, lists, dicts and dataclasses of them, with those in bfloat16 as ``dtype``."""
    return converted(lambda t: t.to(dtype) if t.dtype == torch.bfloat16 else t, outputs)


@contextlib.contextmanager
def _unfused() -> Iterator[None]:                          # in a tenth of the time of PyTorch's sdpa_kernel
    cuda: Any = torch.backends.cuda
    enabled = [kind for kind in ("flash", "mem_efficient", "cudnn") if getattr(cuda, f"{kind}_sdp_enabled")()]
    try:
        for kind in enabled:
            getattr(cuda, f"enable_{kind}_sdp")(False)
        yield
    finally:
        for kind in enabled:
            getattr(cuda, f"enable_{kind}_sdp")(True)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    settings: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in settings]
    try:
        for each in settings:
            each.allow_tf32 = True
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.allow_tf32 = value


def _each_in_tf32(parts: Iterator[T]) -> Iterator[T]:
    while True:
        with _tf32():
            try:
                part = next(parts)
            except StopIteration:
                return
        yield part


def make_cuda_deterministic(strict: bool) -> None:
    """Make CUDA deterministic, with full float32 precision, at some cost in speed.

    Args:
        strict: PyTorch raises a RuntimeError at operations without a deterministic kernel, and does not warn.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False                # the default for convolutions: 10 bits instead of 23
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # weights of recurrent layers are parts of the flat vector, and cuDNN copies them into its own order
    warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
    torch.utils.deterministic.fill_uninitialized_memory = False   # type: ignore[attr-defined]
