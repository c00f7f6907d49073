"""Check the precision in which products are computed."""

from __future__ import annotations

from typing import Any

import torch

from fedsim.errors import ConfigError

PRECISIONS = ("float32", "tf32", "bf16")


def check_precision(experiment: Any) -> None:
    """Check the precision of an ``Experiment``.

    Raises:
        ConfigError: the dtype is float64, or the device has no TF32.
    """
    precision, execution = experiment.precision, experiment.execution
    if precision == "float32":
        return
    if experiment.dtype != "float32":
        raise ConfigError(
            f"precision is {precision} and dtype {experiment.dtype}; expected dtype float32, which products in"
            f" {precision} round, or no precision"
        )
    device = execution.torch_device()
    if precision == "tf32" and (device.type != "cuda" or not torch.cuda.is_tf32_supported()):
        raise ConfigError(
            f"precision is tf32, which NVIDIA's GPUs compute from Ampere on, and device {execution.device!r} is"
            f" {_described(device)}; leave precision out for float32, or use bf16"
        )


def _described(device: torch.device) -> str:
    return "a CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}, which does not"
