"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): W = W_0 + (alpha / r) B A, with W_0 frozen, A [r, k] and B [d, r].

B is 0 at first, and A random, the same for all clients. Only A and B train and travel. Some federated methods are
settings: FedIT (Zhang et al. 2024) averages both, though the mean of products is not the product of means; FFA-LoRA
(Sun et al., ICLR 2024, arXiv 2403.12313) freezes A, which makes the mean exact and halves the bytes; FedSA-LoRA (Guo et
al., ICLR 2025, arXiv 2410.01463) shares A alone and leaves B with the client: ``share.layers "*lora_A*"``. Others are
algorithms: FLoRA and FedEx-LoRA add to the frozen weights, W = W_0 + (alpha / r) (R + B A), where R [d, k] is 0 at
first and part of the vector, so that it is in the state, the checkpoints and the evaluation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.checks import at_least_one, one_of, positive, texts
from fedsim.errors import ModelError, suggest
from fedsim.models.shapes import Architecture, check_model
from fedsim.models.transformer import GPT


class LoRALinear(nn.Module):
    """A frozen linear layer, and a trainable product of low rank beside it.

    Args:
        linear: the layer.
        rank: rank r of the product.
        scaling: its factor alpha / r.
        train_a: train A too, not B alone.
        residual: have R, for methods that change the frozen weights.
    """

    def __init__(self, linear: nn.Linear, rank: int, scaling: float, train_a: bool, residual: bool = False) -> None:
        super().__init__()
        self.linear, self.scaling = linear.requires_grad_(False), scaling
        weight = linear.weight
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.shape[1]), requires_grad=train_a)
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.lora_R = nn.Parameter(torch.zeros_like(weight)) if residual else None
        nn.init.normal_(self.lora_A, std=1 / sqrt(weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., k]`` to ``[..., d]``."""
        low: Tensor = F.linear(F.linear(x, self.lora_A), self.lora_B)
        out: Tensor = self.linear(x) if self.lora_R is None else F.linear(x, self._base(), self.linear.bias)
        return out + self.scaling * low

    def _base(self) -> Tensor:
        """W_0 + (alpha / r) R."""
        weight: Tensor = self.linear.weight
        return weight if self.lora_R is None else weight + self.scaling * self.lora_R

    def merged(self) -> nn.Linear:
        """The layer with weights W_0 + (alpha / r) (R + B A)."""
        layer = copy.deepcopy(self.linear)
        with torch.no_grad():
            layer.weight.copy_(self._base() + self.scaling * self.lora_B @ self.lora_A)
        return layer


@dataclass(frozen=True)
class LoRA:
    """A model that is frozen but for products of low rank beside its linear layers: for FedAvg (FedIT, FFA-LoRA),
    RoLoRA, FLoRA, FedExLoRA, HetLoRA, EVA and LoRAGA.

    Args:
        model: the base model, as settings or, with pretrained weights, as a module; it is copied.
        rank: rank r of the products.
        alpha: their factor is alpha / r.
        targets: names of the linear layers, with * for any letters, separated by commas; the last part of a name is
            enough, such as "qkv, project".
        trained: layers that train as a whole, such as a new head, by the same kind of names; none by default.
        train: "both" A and B, or "B" alone (FFA-LoRA).
        stabilised: use alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        residual: have R [d, k] for each layer in the model's vector, for methods that change the frozen weights.
    """

    model: Architecture | nn.Module = field(default_factory=GPT)
    rank: int = 4
    alpha: float = 8.0
    targets: str = "*"
    trained: str = ""
    train: Literal["both", "B"] = "both"
    stabilised: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "rank")
        positive(self, "alpha")
        one_of(self, "train", ("both", "B"))
        texts(self, "targets", "trained")
        check_model("LoRA.model", self.model)

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network; see ``Architecture.build``.

        Raises:
            ModelError: a name of layers stands for none, or the rank exceeds a side of a layer's weights.
        """
        base = self.model
        module = copy.deepcopy(base) if isinstance(base, nn.Module) else base.build(input_shape, classes)
        module.requires_grad_(False)
        for name in _chosen(module, self.trained, nn.Module) if self.trained else ():
            module.get_submodule(name).requires_grad_(True)
        scaling = self.alpha / (sqrt(self.rank) if self.stabilised else self.rank)
        settings = self.rank, scaling, self.train == "both", self.residual
        for name in _chosen(module, self.targets, nn.Linear):
            layer = module.get_submodule(name)
            if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
                if self.rank > (least := min(layer.weight.shape)):
                    raise ModelError(
                        f"LoRA.rank {self.rank} is above the rank of layer {name}; expected at most {least}"
                    )
                module = _replaced(module, name, LoRALinear(layer, *settings))
        return module


def merged(module: nn.Module) -> nn.Module:
    """A copy of a trained module with its products of low rank added to the weights, and no LoRA left."""
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoRALinear):
            module = _replaced(module, name, layer.merged())
    return module.requires_grad_(True)


def _chosen(module: nn.Module, wanted: str, kind: type[nn.Module]) -> list[str]:
    """Names of the layers of a kind that names with * stand for."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, kind) and name]
    found: dict[str, None] = {}
    for pattern in map(str.strip, wanted.split(",")):
        hits = [name for name in layers if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)]
        if not hits:
            raise ModelError(f"LoRA: {pattern!r} is no {kind.__name__} layer of the model; {suggest(pattern, layers)}")
        found |= dict.fromkeys(hits)
    return list(found)


def _replaced(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
    return module
