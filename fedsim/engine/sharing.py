"""A model of which a part travels and the rest is each client's own: personalisation, for any method.

The method works on vectors of the shared coordinates alone, so its messages, memories and costs are of these. A
client's own coordinates ride through ``local.fold`` like the slots of an optimiser, and every local step moves them
along their own gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.checks import number
from fedsim.engine.optimizers import SGD
from fedsim.errors import ConfigError, few
from fedsim.types import Optimizer
from fedsim.values import Vector

ALL_BUT = "all but "
ORDERS = ("together", "alternate", "frozen")


@dataclass(frozen=True)
class Share:
    """Which layers of the model travel; each client keeps the others to itself.

    FedPer and LG-FedAvg share the first or the last layers, FedBN all but normalisation, FedRep trains its own layers
    before the shared ones, FedBABU does not train them before evaluation.

    Args:
        layers: "all", or names of the layers and parameters that travel, with * for any letters, separated by commas:
            "features, *.bias". A name stands for all below it; a kind of layer, such as Linear or *Norm*, for all of
            its kind. "all but ..." names those that stay with the client.
        train: when a client trains its own layers: "together" with the others, "alternate", before the others in each
            round, or "frozen", never before evaluation.
        first: share of a round's local steps that train the client's own layers alone, with train "alternate".
    """

    layers: str = "all"
    train: Literal["together", "alternate", "frozen"] = "together"
    first: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str) or not self.layers.removeprefix(ALL_BUT).strip():
            raise ConfigError(f"share.layers is {self.layers!r}; expected 'all', names of layers, or 'all but' names")
        if self.train not in ORDERS:
            raise ConfigError(f"share.train is {self.train!r}; expected one of {', '.join(ORDERS)}")
        number("share.first", self.first, lambda v: 0 < v < 1, "a share above 0 and below 1")
        if self.layers == "all" and self.train != "together":
            raise ConfigError(f"share.train is {self.train}, but no layers are the client's own; set share.layers too")

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse an optimiser that would move layers which do not train.

        Raises:
            ConfigError: it is not SGD, and layers take turns.
        """
        if self.train == "alternate" and not isinstance(optimizer, SGD):
            raise ConfigError(
                f"share.train alternate needs plain SGD, as the state of {type(optimizer).__name__} would go on while"
                " its layers wait; leave out local.optimizer, or train together"
            )

    def mask(self, module: nn.Module, names: Sequence[str]) -> list[bool]:
        """Whether each of the named parameters and statistics of a module travels.

        Raises:
            ConfigError: one of the names of layers stands for nothing, or nothing travels.
        """
        but = self.layers.startswith(ALL_BUT)
        chosen = selected(module, names, self.layers.removeprefix(ALL_BUT), "share.layers")
        shared = [picked != but for picked in chosen]
        if not any(shared):
            raise ConfigError(f"share.layers is {self.layers!r}, and nothing would travel; expected some layers to")
        return shared


def selected(module: nn.Module, names: Sequence[str], layers: str, setting: str) -> list[bool]:
    """Which of the named parameters the names of layers select: "all", or names separated by commas.

    Raises:
        ConfigError: one of them selects nothing; ``setting`` says where it was given.
    """
    if layers == "all":
        return [True] * len(names)
    kinds = {name: type(layer).__name__ for name, layer in module.named_modules() if name}
    above = {name: [name, *(name[:k] for k, letter in enumerate(name) if letter == ".")] for name in names}
    found = [False] * len(names)
    for wanted in map(str.strip, layers.split(",")):
        hits = [
            any(fnmatchcase(part, wanted) or fnmatchcase(kinds.get(part, ""), wanted) for part in above[name])
            for name in names
        ]
        if not any(hits):
            tops = dict.fromkeys(f"{top} ({kinds[top]})" if top in kinds else top for top in map(_top, names))
            raise ConfigError(f"{setting}: {wanted!r} is no layer of the model; expected some of {few(tops)}")
        found = [old or hit for old, hit in zip(found, hits, strict=True)]
    return found


def _top(name: str) -> str:
    return name.split(".")[0]


class Sharing:
    """The coordinates of a model's vector ``[d]`` that travel, ``[s]``, and a client's own ``[p]``.

    Args:
        shared: whether each of the model's tensors travels.
        sizes: numbers of their coordinates.
        initial: initial vector ``[d]``; its own coordinates are those of all clients at first.
        share: when a client trains its own layers.
    """

    def __init__(self, shared: Sequence[bool], sizes: Sequence[int], initial: Vector, share: Share) -> None:
        runs = groupby(zip(shared, sizes, strict=True), itemgetter(0))
        self._runs = [(travels, sum(size for _, size in run)) for travels, run in runs]
        self.shared, self.train, self.first = tuple(shared), share.train, share.first
        self.s, self.p = (sum(n for travels, n in self._runs if travels is kind) for kind in (True, False))
        self.own = self.split(initial)[1].clone()
        ends = [0, *torch.tensor([n for _, n in self._runs]).cumsum(0).tolist()]
        self._travels = torch.zeros(ends[-1], dtype=torch.bool, device=initial.device)
        for (travels, _), (start, stop) in zip(self._runs, pairwise(ends), strict=True):
            self._travels[start:stop] = travels

    def to(self, device: str) -> Sharing:
        """The same sharing on another device."""
        other = copy.copy(self)
        other.own, other._travels = self.own.to(device), self._travels.to(device)
        return other

    def whole(self, shared: Vector, own: Vector) -> Vector:
        """The model's vector ``[..., d]`` from its parts."""
        both = {True: iter(_pieces(shared, self._runs, True)), False: iter(_pieces(own, self._runs, False))}
        return torch.cat([next(both[travels]) for travels, _ in self._runs], -1)

    def split(self, x: Vector) -> tuple[Vector, Vector]:
        """Shared and own coordinates of a vector ``[..., d]``."""
        pieces = x.split_with_sizes([n for _, n in self._runs], -1)
        shared, own = (
            [piece for piece, (travels, _) in zip(pieces, self._runs, strict=True) if travels is kind]
            for kind in (True, False)
        )
        return torch.cat(shared, -1), torch.cat(own, -1)

    def start(self, steps: Tensor) -> tuple[Tensor, ...]:
        """What rides beside a client's own coordinates: how many of ``steps`` local steps train these alone."""
        return ((self.first * steps).floor(),) if self.train == "alternate" else ()

    def moved(self, y: Vector, new: Vector, turn: tuple[Tensor, ...]) -> tuple[Vector, tuple[Tensor, ...]]:
        """The point after a step from ``y [d]``, which would be ``new`` if all moved, and the turns that are left."""
        if self.train == "frozen":
            return torch.where(self._travels, new, y), ()
        if self.train == "together":
            return new, ()
        (left,) = turn
        return torch.where(self._travels == (left <= 0), new, y), (left - 1,)


def _pieces(x: Vector, runs: Sequence[tuple[bool, int]], kind: bool) -> tuple[Tensor, ...]:
    return x.split_with_sizes([n for travels, n in runs if travels is kind], -1)
