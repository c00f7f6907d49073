"""Per-sample losses and accuracy; the caller takes the mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fedsim.errors import ModelError


def logits_of(outputs: Any) -> Tensor | None:
    """The outputs if they are a tensor, or their entry ``logits`` if they are a dict or a dataclass; else None."""
    if not isinstance(outputs, Tensor):
        outputs = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    return outputs if isinstance(outputs, Tensor) else None


def _logits(name: str, outputs: Any) -> Tensor:
    if (logits := logits_of(outputs)) is None:
        raise ModelError(
            f"{name} got outputs of type {type(outputs).__name__}; expected a tensor, or a dict or dataclass with an"
            " entry logits. Give a loss of your own, a function of (outputs, targets)."
        )
    return logits


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy ``[B]`` in nats; for a sequence, the mean over its positions.

    Args:
        outputs: logits ``[B, C]`` or ``[B, T, C]``; or a dict or dataclass with an entry ``logits``.
        targets: int64 classes ``[B]`` or ``[B, T]``.
    """
    outputs = _logits("cross_entropy", outputs)
    _check_shapes("cross_entropy", outputs.shape[:-1] == targets.shape, "outputs [*targets, classes]", outputs, targets)
    loss = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return _mean_of_positions(loss.reshape(targets.shape))


def squared(outputs: Any, targets: Tensor) -> Tensor:
    """Half the squared error ``(o - t)^2 / 2`` as ``[B]``, for outputs ``[B]`` or ``[B, 1]`` and targets ``[B]``."""
    return 0.5 * (_one_output("squared", outputs, targets) - targets).square()


def logistic(outputs: Any, targets: Tensor) -> Tensor:
    """Binary logistic loss ``log(1 + exp(-b o))`` as ``[B]``, with ``b = 2t - 1``.

    Args:
        outputs: logits ``[B]`` or ``[B, 1]``.
        targets: classes ``[B]`` in {0, 1}.
    """
    logits = _one_output("logistic", outputs, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Accuracy of each sample, float32 ``[B]``; for a sequence, the fraction of correct positions.

    Args:
        outputs: logits ``[B, C]`` or ``[B, T, C]``, or one binary logit as ``[B]`` or ``[B, 1]``.
        targets: int64 classes ``[B]`` or ``[B, T]``.
    """
    if outputs.shape in (targets.shape, (*targets.shape, 1)):
        return ((outputs.reshape(targets.shape) > 0) == (targets > 0)).float()
    _check_shapes("correct", outputs.shape[:-1] == targets.shape, "outputs [*targets, classes]", outputs, targets)
    return _mean_of_positions((outputs.argmax(-1) == targets).float())


def _mean_of_positions(values: Tensor) -> Tensor:
    return values.mean(1) if values.dim() == 2 else values


def _one_output(name: str, outputs: Any, targets: Tensor) -> Tensor:
    logits = _logits(name, outputs)
    fits = targets.dim() == 1 and logits.shape in (targets.shape, (*targets.shape, 1))
    _check_shapes(name, fits, "one output a sample, [B] or [B, 1], and targets [B]", logits, targets)
    return logits.reshape(targets.shape)


def _check_shapes(name: str, fits: bool, expected: str, outputs: Tensor, targets: Tensor) -> None:
    if not fits:
        given = f"outputs {list(outputs.shape)} and targets {list(targets.shape)}"
        raise ModelError(f"{name} got {given}; expected {expected}. Choose the loss that fits the model's output.")
