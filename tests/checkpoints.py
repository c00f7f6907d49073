"""The content of a checkpoint, whatever the files that it is divided into."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fedsim.record.blocks import read
from fedsim.record.checkpoint import Loaded, load_latest


def tensors(loaded: Loaded) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name; ``"g_i.3.0"`` is the first one of client 3's memory ``g_i``."""
    found = dict(loaded.tensors)
    for name, blocks in loaded.memories.items():
        for node, row in read(blocks, None, torch.device("cpu")).items():
            found |= {f"{name}.{node}.{k}": leaf for k, leaf in enumerate(row)}
    return found


def content(directory: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor of the latest checkpoint, those of memories too."""
    loaded = load_latest(directory)
    assert loaded is not None
    return {
        name: (str(tensor.dtype), list(tensor.shape), bytes(tensor.reshape(-1).view(torch.uint8).numpy()))
        for name, tensor in tensors(loaded).items()
    }
