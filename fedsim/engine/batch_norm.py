"""Running statistics of BatchNorm, which travel and are averaged with the parameters.

They are the last coordinates of the vector of a model (``fedsim.engine.model``): mean, mixing, charge, checkpoint and
evaluation treat them as any others. A step of ``local.descend`` takes over the statistics that the forward pass of its
first gradient left behind (``fedsim.engine.descent``); no correction, optimiser or weight decay touches them.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedsim.errors import ModelError


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """Running means and variances of the BatchNorm layers in training mode, by their names in the module.

    Raises:
        ModelError: a layer keeps statistics of another kind.
    """
    found: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if not layer.training or not getattr(layer, "track_running_stats", False):
            continue
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.momentum is None:
            fix = "momentum=0.1" if isinstance(layer, nn.modules.batchnorm._BatchNorm) else "track_running_stats=False"
            raise ModelError(
                f"layer {name!r} is {layer} in training mode, which keeps running statistics that cannot be averaged;"
                f" expected {fix}, or frozen ones: layer.eval()"
            )
        found |= {f"{name}.{kind}" if name else kind: getattr(layer, kind) for kind in ("running_mean", "running_var")}
    return found
