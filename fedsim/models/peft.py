"""A model fine-tuned by LoRA as files that ``PeftModel.from_pretrained`` of the library PEFT reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsim.errors import ConfigError, ModelError
from fedsim.models.lora import LoRALinear

SMALLEST = 1e-6
"""Singular values below this share of the largest are rounding."""


def save_adapter(module: nn.Module, folder: str | Path, under: str = "") -> None:
    """Write the products of low rank of a trained module, and the layers that trained as a whole, for PEFT.

    ``PeftModel.from_pretrained(base, folder)`` gives the same outputs, where ``base`` is the model that was fine-tuned.
    What methods added to the frozen weights is written too, as products of a rank that is large enough.

    Args:
        module: the module, as ``trained_model`` returns it.
        folder: new folder.
        under: name of the part of the module that is the base model for PEFT, such as "encoder"; all by default. Layers
            outside of it that trained as a whole, such as a head, are written to ``others.safetensors``.

    Raises:
        ModelError: that part has no products of low rank.
        ConfigError: the folder is there already, or cannot be made.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"save_adapter got {module!r:.80}; expected the module that trained_model returns")
    prefix = f"{under}." if under else ""
    layers = {
        name.removeprefix(prefix): layer
        for name, layer in module.named_modules()
        if isinstance(layer, LoRALinear) and name.startswith(prefix)
    }
    if not layers:
        where = f"no part {under!r} with" if under else "no"
        raise ModelError(f"{type(module).__name__} has {where} products of low rank; expected a model by LoRA")
    tensors, ranks, alphas = {}, {}, {}
    for name, layer in layers.items():
        a, b = factors(layer)
        ranks[name], alphas[name] = len(a), layer.scaling * len(a)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    inside: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for name, p in module.named_parameters():
        if p.requires_grad and ".lora_" not in f".{name}":
            (inside if name.startswith(prefix) else outside)[name.removeprefix(prefix)] = p.detach().clone()
    tensors |= {f"base_model.model.{name}": tensor for name, tensor in inside.items()}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already; expected a new folder for the adapter") from None
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; expected a new folder for the adapter") from None
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    if outside:
        save_file(outside, folder / "others.safetensors", {"format": "pt"})
    settings = _config(ranks, alphas, sorted({name.rpartition(".")[0] for name in inside}))
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def factors(layer: LoRALinear) -> tuple[Tensor, Tensor]:
    """A and B of a layer, ``[r, k]`` and ``[d, r]``; with R, factors of R + B A of a rank r that is large enough."""
    a, b = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    if layer.lora_R is None or not bool(layer.lora_R.any()):
        return a, b
    whole = layer.lora_R.detach().double() + b.double() @ a.double()
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    r = max(1, int((s > SMALLEST * s[0]).sum()))
    root = s[:r].sqrt()
    return (root[:, None] * v[:r]).to(a).contiguous(), (u[:, :r] * root).to(b).contiguous()


def _config(ranks: dict[str, int], alphas: dict[str, float], whole: list[str]) -> dict[str, Any]:
    """Settings of PEFT: one rank and one alpha, and those of each layer."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": whole or None,
    }
