"""GroupNorm (Wu and He, ECCV 2018, arXiv 1803.08494) in place of BatchNorm.

BatchNorm's statistics belong to a client's own data and break under averaging (Hsieh et al., ICML 2020,
arXiv 1910.00189); GroupNorm has none, and normalises each sample alone.
"""

from __future__ import annotations

import copy

from torch import nn

from fedsim.errors import ModelError

FEWEST = 16
"""Channels in a group, by the paper; fewer only if the layer has fewer. One channel alone would be normalised to 0
where a sample has one value for it.
"""


def group_norm(module: nn.Module, groups: int = 32) -> nn.Module:
    """Return a copy of a module with every BatchNorm replaced by GroupNorm, with the weights, biases and eps of it.

    Args:
        module: any module; it is not modified.
        groups: largest number of groups of a layer. Each has the largest number up to it that divides the channels and
            leaves at least 16 to a group.

    Raises:
        ModelError: ``groups`` is below 1, or a lazy BatchNorm does not know its channels yet.
    """
    if groups < 1:
        raise ModelError(f"groups is {groups}; expected 1 or more")
    for name, layer in module.named_modules():
        if _is_batch_norm(layer) and not layer.num_features:
            raise ModelError(f"layer {name!r} is {type(layer).__name__} without a shape; call it on a sample before")
    module = copy.deepcopy(module)
    if _is_batch_norm(module):
        return _converted(module, groups)
    new: dict[nn.Module, nn.Module] = {}                   # a layer that occurs twice stays one
    for parent in list(module.modules()):
        for name, layer in parent._modules.items():
            if layer is not None and _is_batch_norm(layer):
                if layer not in new:
                    new[layer] = _converted(layer, groups)
                setattr(parent, name, new[layer])
    return module


def _is_batch_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def _converted(layer: nn.Module, groups: int) -> nn.GroupNorm:
    channels, affine = int(layer.num_features), bool(layer.affine)  # type: ignore[arg-type]
    number = max(g for g in range(1, groups + 1) if channels % g == 0 and (g == 1 or channels // g >= FEWEST))
    made = nn.GroupNorm(number, channels, eps=float(layer.eps), affine=affine)  # type: ignore[arg-type]
    if affine:
        made.weight, made.bias = layer.weight, layer.bias  # type: ignore[assignment]
    return made.train(layer.training)
