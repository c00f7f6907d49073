"""GPT-2 (Radford et al., "Language models are unsupervised multitask learners", OpenAI 2019), in small.

A decoder-only transformer with layer normalisation before each sublayer, learned positions, and the paper's initial
values: N(0, 0.02^2), divided by sqrt(2 layers) where a sublayer writes into the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.checks import at_least_one, in_range
from fedsim.errors import ConfigError, ModelError
from fedsim.models.shapes import one_tensor, unfit

STD = 0.02


class CausalAttention(nn.Module):
    """Multi-head attention of every position to itself and those before it.

    It is spelled out, as PyTorch's fused attention with dropout cannot run for many clients at a time.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """``[B, T, width]`` to the same."""
        length, width = h.shape[-2:]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).split(width, -1))
        future = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
        scores = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).masked_fill(future, -torch.inf)
        mixed = self.drop(scores.softmax(-1)) @ v
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(-2))
        return out


class TransformerBlock(nn.Module):
    """Attention, then an MLP of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads, dropout)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """``[B, T, width]`` to the same."""
        h = h + self.drop(self.attention(self.norm1(h)))
        out: Tensor = h + self.drop(self.down(F.gelu(self.up(self.norm2(h)), approximate="tanh")))
        return out


class LanguageModel(nn.Module):
    """Token and position embeddings, blocks, and logits of the next token at every position."""

    def __init__(self, vocabulary: int, length: int, settings: GPT) -> None:
        super().__init__()
        width = settings.width
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(settings.dropout)
        blocks = [TransformerBlock(width, settings.heads, settings.dropout) for _ in range(settings.layers)]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)
        self.output = None if settings.tied else nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                residual = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(p, std=STD * (2 * settings.layers) ** -0.5 if residual else STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, T]`` to logits of the next token ``[B, T, vocabulary]``; T at most that of training."""
        h = self.drop(self.tokens(tokens) + self.positions.weight[: tokens.shape[-1]])
        h = self.norm(self.blocks(h))
        logits: Tensor = F.linear(h, self.tokens.weight) if self.output is None else self.output(h)
        return logits


@dataclass(frozen=True)
class GPT:
    """GPT-2's decoder-only transformer; the default is small: 210,944 parameters for 80 tokens out of 90.

    Attributes:
        width: width of embeddings and blocks; a multiple of ``heads``.
        layers: number of blocks.
        heads: attention heads of a block.
        dropout: share of the numbers that dropout zeroes in training: embeddings, attention weights, sublayers.
        tied: use the token embedding as the last layer's weights, as GPT-2 does.
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        at_least_one(self, "width", "layers", "heads")
        if self.width % self.heads:
            raise ConfigError(f"got {self}; expected a width that is a multiple of heads")
        in_range(self, "dropout", 0, 1)

    def build(self, input_shape: tuple[int, ...], classes: int) -> LanguageModel:
        """The network for sequences ``[T]`` of token ids below ``classes``; see ``Architecture.build``."""
        if not one_tensor(input_shape) or len(input_shape) != 1:
            raise unfit("GPT", "sequences of token ids [T]", input_shape)
        if classes < 1:
            raise ModelError(f"GPT got classes={classes}; expected the vocabulary's size, at least 1")
        return LanguageModel(classes, input_shape[0], self)
