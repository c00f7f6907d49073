"""Initial model from a file: a state_dict of PyTorch, as ``fedsim export`` writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim.errors import ConfigError, RunError

SHOWN = 3
"""Most names of parameters in a message."""


def start_from(module: nn.Module, file: str) -> None:
    """Set all parameters and buffers of a module to those in a file.

    Raises:
        ConfigError: the file cannot be read, is no state_dict, or is that of another module.
    """
    state, own = _read(Path(file)), module.state_dict()
    other = [
        f"it {verb} {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for verb, names in (("lacks", [n for n in own if n not in state]), ("has", [n for n in state if n not in own]))
        if names
    ]
    other += [
        f"its {name} is {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ][:SHOWN]
    if other:
        raise ConfigError(
            f"init: {file} is not a state_dict of this {type(module).__name__}: {'; '.join(other)}. Expected the names"
            f" and shapes of the model: {', '.join(list(own)[:SHOWN])}{' ...' if len(own) > SHOWN else ''}"
        )
    module.load_state_dict(state)


def file_hash(file: str) -> str:
    """SHA-256 of the file of an initial model.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"init: cannot read {file}: {error.strerror}") from None


def check_unchanged(file: str | None, manifest: Mapping[str, Any], path: Path) -> None:
    """Raise RunError if the initial model of the run at ``path`` is another one now."""
    if file is not None and (found := file_hash(file)) != (expected := manifest.get("init_hash", "unknown")):
        raise RunError(
            f"{path} began with {file} with hash {expected[:12]}, the file found now has {found[:12]}; restore it"
        )


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        raise ConfigError(
            f"init: {path} is a folder; expected a file. Of a run: fedsim export {path} --output model.safetensors"
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"init: cannot read {path}: {error.strerror or error}") from None
    except Exception as error:                             # of other files, unpickling raises whatever it meets
        raise ConfigError(
            f"init: {path} is not a file of tensors ({' '.join(str(error).split()):.100}); expected one that fedsim"
            " export or torch.save(module.state_dict(), FILE) wrote"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        held = f"the keys {', '.join(map(str, state))}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ConfigError(f"init: {path} holds {held:.200}; expected a state_dict, from names to tensors")
    return dict(state)
