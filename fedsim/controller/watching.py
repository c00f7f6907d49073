"""Watchers of a run: the user's callback after every round, and sinks of its metrics. They change no result."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedsim.controller.prepare import Prepared
from fedsim.controller.trained import vector_of
from fedsim.errors import CodeError, ConfigError, explained
from fedsim.record.directory import RunDirectory
from fedsim.record.sinks.sink import LiveSinks
from fedsim.values import Vector


@dataclass(frozen=True)
class RoundView:
    """What a callback sees of a round: copies, so that it cannot change the run.

    Attributes:
        run: the run directory.
        seed: the seed.
        round: the round, 0 before any training.
        last: whether it is the seed's last.
        metrics: what was measured in this round, by (scope, metric), without values of single clients; often nothing.
    """

    run: RunDirectory
    seed: int
    round: int
    last: bool
    metrics: Mapping[tuple[str, str], float]
    _prepared: Prepared = field(repr=False)
    _state: Any = field(repr=False)

    def vector(self, node: int | None = None) -> Vector:
        """Copy of the model ``[d]`` on the CPU: the server's, the weighted average of nodes, or one client's own.

        Raises:
            ConfigError: there is no such node, or it has none of its own.
        """
        return torch.clone(vector_of(self._prepared, self._state, self.run, node).detach().cpu())

    def model(self, node: int | None = None) -> nn.Module:
        """Copy of the module with the parameters of `vector`, on the CPU and in eval mode."""
        model, x = self._prepared.federation.model, self.vector(node)
        held = model.vector()                              # of the engine, which goes on with it
        module = copy.deepcopy(model.load(x.to(model.device)))
        model.load(held)
        return module.cpu().eval()


OnRound = Callable[[RoundView], None]
"""Callback after every round, from round 0 on."""


def check_callback(on_round: Any) -> None:
    """Raise ConfigError unless this is a callback, or None."""
    if on_round is not None and (isinstance(on_round, type) or not callable(on_round)):
        raise ConfigError(f"on_round is {on_round!r:.200}; expected a function of a RoundView, or an object called")


class Watchers:
    """The callback and the sinks of a run. A context manager."""

    def __init__(self, on_round: OnRound | None, sinks: LiveSinks) -> None:
        self._on_round, self._sinks = on_round, sinks

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, *_: object) -> None:
        self._sinks.close()

    def tell(self, view: RoundView) -> None:
        """Show a completed round, whose rows are in the files of the run.

        Raises:
            CodeError: the callback raised, returned something, or left another setting of PyTorch behind.
        """
        if view.metrics:
            self._sinks.catch_up(view.seed)
        if self._on_round is None:
            return
        name = f"on_round after round {view.round}"
        with explained(name), _settings_kept(name):
            returned = self._on_round(view)
        if returned is not None:
            raise CodeError(f"{name} returned {returned!r:.80}; expected None: it has no part in the run's result")


@contextlib.contextmanager
def _settings_kept(name: str) -> Iterator[None]:
    """Refuse changes of PyTorch's settings on which the results of later rounds depend."""
    before = _settings()
    yield
    for (what, old), new in zip(before.items(), _settings().values(), strict=True):
        if new != old:
            raise CodeError(f"{name} changed PyTorch's {what} from {old} to {new}, and results with it; set it back")


def _settings() -> dict[str, Any]:
    return {
        "number of threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "precision of matrix products": torch.get_float32_matmul_precision(),
        "mode of gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
