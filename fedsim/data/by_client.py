"""Federations that are not in memory: a function gives the samples of each client when a round needs them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.checks import whole
from fedsim.data.arrays import inputs_of, targets_of
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import ConfigError, DataError, explained

Pair = tuple[Tensor, Tensor]


@dataclass(eq=False)
class ClientSource:
    """Samples of clients by a function, of which those last used are kept.

    Args:
        load: function from a client's number to its inputs ``[m, ...]`` and targets ``[m, ...]``, always the same ones.
        sizes: ``[n]`` int64, numbers of samples of all clients.
        budget: bytes of samples that are kept.
    """

    load: Callable[[int], tuple[Any, Any]]
    sizes: np.ndarray
    budget: int
    _form: Any = field(default=None, init=False)
    _kept: OrderedDict[int, Pair] = field(default_factory=OrderedDict, init=False)
    _bytes: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"load": self.load, "sizes": self.sizes, "budget": self.budget, "_form": self._form}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_kept": OrderedDict(), "_bytes": 0, "_lock": threading.Lock()}

    def samples(self, client: int) -> Pair:
        """Inputs ``[m, ...]`` and targets ``[m, ...]`` of one client.

        Raises:
            CodeError: the function raised an exception.
            DataError: it returned samples of another form or number than it should.
        """
        with self._lock:                                   # the function need not be safe for several threads
            if client in self._kept:
                self._kept.move_to_end(client)
                return self._kept[client]
            pair = self._loaded(client)
            self._kept[client] = pair
            self._bytes += _size(pair)
            while self._bytes > self.budget and len(self._kept) > 1:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
            return pair

    def _loaded(self, client: int) -> Pair:
        name, expected = getattr(self.load, "__qualname__", type(self.load).__name__), int(self.sizes[client])
        with explained(f"{name}({client})"):
            found = self.load(client)
        if not isinstance(found, tuple) or len(found) != 2:
            raise DataError(f"{name}({client}) returned a {type(found).__name__}; expected inputs and targets (x, y)")
        x, y = pair_of(*found, f"{name}({client})")
        if len(x) != expected or len(y) != expected:
            raise DataError(
                f"{name}({client}) returned {len(x)} inputs and {len(y)} targets; expected {expected} of each, as sizes"
                " says"
            )
        form = (x.dtype, x.shape[1:], y.dtype, y.shape[1:])
        self._form = self._form or form
        if form != self._form:
            raise DataError(f"{name}({client}) returned samples of the form {form}; expected {self._form}, as before")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError(f"{name}({client}) returned an input that is NaN or infinite; expected finite numbers")
        return x, y


def pair_of(x: Any, y: Any, where: str) -> Pair:
    """Inputs and targets as tensors: class labels int64, other targets float32."""
    targets = targets_of(y, f"{where} y")
    if targets.dtype.kind not in "biuf":
        raise DataError(f"{where} returned targets of {targets.dtype}; expected numbers of classes, or real numbers")
    kind: Any = np.float32 if targets.dtype.kind == "f" else np.int64
    return inputs_of(x, f"{where} x"), torch.from_numpy(targets.astype(kind))


def dataset_by_client(
    load: Callable[[int], tuple[Any, Any]],
    sizes: Sequence[int] | np.ndarray,
    test: tuple[Any, Any],
    classes: int,
    *,
    name: str = "clients",
    label_names: tuple[str, ...] | None = None,
    budget: int = 2**30,
) -> Dataset:
    """A ``Dataset`` whose training samples a function gives, client by client, when they are needed.

    Its natural clients are the clients of the federation. Inputs of 8 bits stay so in memory, and models get them as
    real numbers from 0 to 1.

    Args:
        load: function from a client's number, 0 to n - 1, to its inputs ``[m, ...]`` and targets ``[m]``, the same ones
            whenever it is called.
        sizes: ``[n]`` numbers of samples of all clients, each at least 1.
        test: inputs and targets of the test samples.
        classes: number of classes; 0 for real targets.
        name: of the data set.
        label_names: name of class ``k`` at position ``k``.
        budget: bytes of samples that are kept for the next use.

    Raises:
        ConfigError: sizes or budget are invalid, or the function gives other samples when it is called again.
        DataError: its samples do not fit each other, the test samples, or the classes.
        CodeError: it raised an exception.
    """
    numbers = np.asarray(sizes)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu" or numbers.min() < 1:
        raise ConfigError(
            f"sizes is {numbers!r:.80}; expected the number of samples of each client, whole numbers of 1 or more"
        )
    whole("budget", budget, 1)
    source = ClientSource(load, numbers.astype(np.int64), budget)
    x, y = source.samples(0)
    again = ClientSource(load, source.sizes, budget).samples(0)
    if not torch.equal(x, again[0]) or not torch.equal(y, again[1]):
        raise ConfigError(
            "the function gives client 0 other samples when it is called again; expected the same ones always: draw"
            " from a generator that is seeded by the client's number"
        )
    held, pixels = pair_of(*test, "test"), x.dtype == torch.uint8
    if held[0].dtype != x.dtype:
        raise DataError(f"test inputs are {held[0].dtype}, those of clients {x.dtype}; expected the same type")
    return Dataset(
        name, Split(x, y, None, pixels), Split(*held, None, pixels), classes, label_names=label_names, source=source
    )


def _size(pair: Pair) -> int:
    return sum(t.nbytes for t in pair)
